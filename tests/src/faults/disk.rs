//! Disks of a row's own: a file system in an image, which needs root and the usual tools.
//!
//! An image shows what had reached the disk: what a file system still keeps in memory is not in it.

use std::{
    fs::File,
    path::{Path, PathBuf},
    process::Command,
};

use crate::until;

/// A mounted image; unmounted when dropped.
#[derive(Debug)]
pub(super) struct Disk {
    at: PathBuf,
}

impl Disk {
    /// Makes an image of so many MiB and mounts it; says why where this machine does not let it.
    pub(super) fn make(image: &Path, mib: u64, at: &Path) -> Result<Self, String> {
        let file = File::create_new(image).map_err(|error| error.to_string())?;
        let sized = file.set_len(mib * 1024 * 1024);
        sized.map_err(|error| error.to_string())?;
        // no reserve for root, who would go on where others are out of space
        run(Command::new("mkfs.ext4").args(["-q", "-m", "0"]).arg(image))?;
        Self::mount(image, at)
    }

    pub(super) fn mount(image: &Path, at: &Path) -> Result<Self, String> {
        std::fs::create_dir_all(at).map_err(|error| error.to_string())?;
        let loop_device = ["-o", "loop,noatime"];
        run(Command::new("mount").args(loop_device).arg(image).arg(at))?;
        Ok(Self { at: at.to_owned() })
    }

    /// Lets nobody write any more, or everybody again.
    pub(super) async fn read_only(&self, only: bool) {
        let option = if only { "remount,ro" } else { "remount,rw" };
        // what was killed a moment ago may still hold a file
        until("the disk is mounted otherwise", || async {
            run(Command::new("mount").args(["-o", option]).arg(&self.at)).ok()
        })
        .await;
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // a server that was killed a moment ago may still hold a file
        let unmounted = run(Command::new("umount").arg(&self.at));
        if unmounted.is_err() {
            let _ = run(Command::new("umount").arg("-l").arg(&self.at));
        }
    }
}

/// A copy of an image as it is on the disk now, holes and all.
pub(super) fn copy(from: &Path, to: &Path) {
    let mut command = Command::new("cp");
    command.args(["--sparse=always", "--reflink=auto"]);
    run(command.arg(from).arg(to)).unwrap();
}

fn run(command: &mut Command) -> Result<(), String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.output();
    let output = output.map_err(|error| format!("{program}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let told = String::from_utf8_lossy(&output.stderr);
    let line = told.lines().next().unwrap_or("it failed").to_owned();
    Err(format!("{program}: {line}"))
}
