//! How often a model that does not work is loaded again: ever more seldom.

use crate::thread::Health;

/// Most looks between two tries.
const RELOAD_LOOKS_MAX: u64 = 60;

/// When a model may be tried again, counted in looks at it.
#[derive(Debug, Default)]
pub(super) struct Tries {
    count: u32,
    left: u64,
}

impl Tries {
    pub(super) fn is_due(&mut self, health: Health) -> bool {
        match health {
            // A step that hangs may end; its memory is not to be had before.
            Health::Stuck => false,
            Health::Well => {
                // What breaks down after every load is not to be loaded every second.
                self.left = self.left.saturating_sub(1);
                if self.left == 0 {
                    self.count = 0;
                }
                false
            }
            Health::Dead if self.left > 0 => {
                self.left -= 1;
                false
            }
            Health::Dead => {
                self.left = (1 << self.count.min(16)).min(RELOAD_LOOKS_MAX);
                self.count += 1;
                true
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_breaks_down_is_tried_at_once_and_then_ever_more_seldom() {
        let mut tries = Tries::default();
        let due: Vec<usize> = (0..300).filter(|_| tries.is_due(Health::Dead)).collect();
        assert_eq!(due[..6], [0, 2, 5, 10, 19, 36]);
        assert!(
            due.windows(2).all(|pair| pair[1] - pair[0] <= 61),
            "{due:?}"
        );
        for _ in 0..61 {
            assert!(!tries.is_due(Health::Well));
        }
        assert!(tries.is_due(Health::Dead), "it was well for long enough");
        assert!(!Tries::default().is_due(Health::Stuck));
    }
}
