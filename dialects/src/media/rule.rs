//! What models charge for images and sounds, in tokens, by the rules of the large families.

use super::{Audio, Image, Medium};

/// Pixels of a side of a patch, a tile, a cell.
const PATCH: u64 = 32;
const TILE: u64 = 512;
const CELL: u64 = 28;
/// Where tiles are cut, the image is first brought into a box, then its shorter side to a length.
const TILES_BOX: u64 = 2048;
const TILES_SHORT: u64 = 768;
/// Pixels of a token, where an older family counts by area.
const AREA: u64 = 750;
/// Patches of an image that is looked at from afar: no more than 512 pixels a side.
const LOW_PATCHES: u64 = 256;
const MILLION: u64 = 1_000_000;

/// How tokens come of width and height.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImageRule {
    /// Patches of 32 pixels, times a number: OpenAI since GPT-5.
    Patches {
        /// Tokens of a million patches.
        per_million: u64,
    },
    /// Tiles of 512 pixels and something for the image itself: GPT-4o and 4.1.
    Tiles {
        /// Of the image itself, which is all of one that is looked at from afar.
        base: u64,
        /// Of each tile.
        tile: u64,
    },
    /// A grid of 28 pixels, or a token for 750 pixels, whichever are more: Anthropic.
    Grid,
    /// Every image costs the most: Gemini, and whatever is not known better.
    Fixed,
}

/// What an image may cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImageLimit {
    /// How it is counted.
    pub rule: ImageRule,
    /// Most tokens of one image, whatever its size.
    pub max_tokens: u64,
    /// `detail: "high"` goes out with every image that does not ask for less, since the most holds for that.
    pub pins_detail: bool,
}

/// What a sound may cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AudioLimit {
    /// Tokens of a second.
    pub tokens_per_second: u64,
}

/// What is known of a model's images and sounds; nothing where a metered request may have none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MediaLimits {
    /// Images.
    pub image: Option<ImageLimit>,
    /// Sounds.
    pub audio: Option<AudioLimit>,
}

impl MediaLimits {
    /// Tokens of one of them; without a limit its bytes, which is what nobody looked into costs at most here.
    pub(crate) fn tokens(&self, medium: &Medium) -> u64 {
        match (medium, self.image, self.audio) {
            (Medium::Image(image), Some(limit), _) => limit.tokens(image),
            (Medium::Audio(audio), _, Some(limit)) => limit.tokens(audio),
            (Medium::Image(Image { printed, .. }), None, _)
            | (Medium::Audio(Audio { printed, .. }), _, None) => *printed,
        }
    }
}

impl ImageLimit {
    pub(crate) fn tokens(&self, image: &Image) -> u64 {
        let of_size = image.size.map(|size| self.rule.tokens(size, image.is_low));
        let tokens = of_size.flatten().unwrap_or(u64::MAX).min(self.max_tokens);
        // an address may stand in the prompt as well
        let address = if image.is_inline { 0 } else { image.printed };
        tokens.saturating_add(address)
    }
}

impl AudioLimit {
    /// Where nobody knows how long it is, its bytes: such a one is let through only where nothing is bounded.
    pub(crate) fn tokens(&self, audio: &Audio) -> u64 {
        audio.seconds.map_or(audio.printed, |seconds| {
            seconds.saturating_mul(self.tokens_per_second)
        })
    }
}

impl ImageRule {
    /// No fewer than the rule makes of an image, before any scaling down that the most stands for.
    fn tokens(self, (width, height): (u64, u64), is_low: bool) -> Option<u64> {
        match self {
            Self::Patches { per_million } => {
                let patches = cells(width, height, PATCH);
                let patches = if is_low {
                    patches.max(LOW_PATCHES)
                } else {
                    patches
                };
                Some(patches.saturating_mul(per_million).div_ceil(MILLION))
            }
            Self::Tiles { base, .. } if is_low => Some(base),
            Self::Tiles { base, tile } => Some(
                tiles(width, height)
                    .saturating_mul(tile)
                    .saturating_add(base),
            ),
            Self::Grid => {
                let by_area = width.saturating_mul(height).div_ceil(AREA);
                Some(cells(width, height, CELL).max(by_area))
            }
            Self::Fixed => None,
        }
    }
}

fn cells(width: u64, height: u64, side: u64) -> u64 {
    width.div_ceil(side).saturating_mul(height.div_ceil(side))
}

/// An image that is small already is made larger by some and left by others: the more of both. Each length is
/// rounded up, so that no rounding of a server makes another tile.
fn tiles(width: u64, height: u64) -> u64 {
    let (short, long) = (width.min(height).max(1), width.max(height));
    let scaled = TILES_SHORT.saturating_mul(long).div_ceil(short);
    let brought = cells(scaled, TILES_SHORT, TILE);
    let fitted = match long > TILES_BOX {
        true => (TILES_BOX, short.saturating_mul(TILES_BOX).div_ceil(long)),
        false => (long, short),
    };
    match fitted.1 > TILES_SHORT {
        true => brought,
        false => brought.max(cells(fitted.0, fitted.1, TILE)),
    }
}
