//! What nobody may miss once all is well.

use std::{sync::Arc, time::Duration};

use tokio::time::{sleep, timeout};

use crate::hosts::Hosts;

/// A takeover from a dead host, with everything that was under way before.
const SERVES_WITHIN: Duration = Duration::from_secs(15);

pub(crate) async fn all_is_well(hosts: &Arc<Hosts>) -> Result<(), String> {
    let served = async {
        while hosts.serving().is_none() {
            sleep(Duration::from_millis(50)).await;
        }
    };
    let served = timeout(SERVES_WITHIN, served).await;
    served.map_err(|_| "all is well, and nobody serves".to_owned())
}
