//! `image` and `audio` of a model: how its images and sounds are counted, and what one costs at most.

use seatbelt_gateway::{AudioLimit, ImageLimit, ImageRule, MediaLimits};
use seatbelt_schemas::amount::TOKENS_PER_REQUEST_MAX;

use super::{price::multiplier, reader::Section};

/// Names of the rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rule {
    Patches,
    Tiles,
    Grid,
    Fixed,
}

const RULES: [(&str, Rule); 4] = [
    ("patches", Rule::Patches),
    ("tiles", Rule::Tiles),
    ("grid", Rule::Grid),
    ("fixed", Rule::Fixed),
];

pub(super) fn read_media(section: &mut Section) -> MediaLimits {
    MediaLimits {
        image: section
            .has("image")
            .then(|| read_image(section.section("image")))
            .flatten(),
        audio: section
            .has("audio")
            .then(|| read_audio(section.section("audio")))
            .flatten(),
    }
}

fn read_image(mut section: Section) -> Option<ImageLimit> {
    let tokens = |section: &mut Section, name| {
        section.required(name, |section| {
            section.number(name, 1, TOKENS_PER_REQUEST_MAX)
        })
    };
    let rule = section.required("rule", |section| section.word("rule", &RULES));
    let max_tokens = tokens(&mut section, "max_tokens");
    let pins_detail = section.word("detail", &[("high", ())]).is_some();
    let rule = rule.and_then(|rule| {
        Some(match rule {
            Rule::Patches => ImageRule::Patches {
                per_million: section.required("multiplier", |section| {
                    section.text_with("multiplier", multiplier)
                })?,
            },
            Rule::Tiles => ImageRule::Tiles {
                base: tokens(&mut section, "base")?,
                tile: tokens(&mut section, "tile")?,
            },
            Rule::Grid => ImageRule::Grid,
            Rule::Fixed => ImageRule::Fixed,
        })
    });
    section.finish();
    Some(ImageLimit {
        rule: rule?,
        max_tokens: max_tokens?,
        pins_detail,
    })
}

fn read_audio(mut section: Section) -> Option<AudioLimit> {
    let tokens_per_second = section.required("tokens_per_second", |section| {
        section.number("tokens_per_second", 1, TOKENS_PER_REQUEST_MAX)
    });
    section.finish();
    Some(AudioLimit {
        tokens_per_second: tokens_per_second?,
    })
}
