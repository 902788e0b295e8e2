//! A folder of an encoder: what it says of itself.
//!
//! The layout is the one in which sentence-transformers and their kin are published as ONNX: `model.onnx`, there or in
//! `onnx/`, `tokenizer.json`, and `config.json`, which says how long a text may be. A folder of a decoder has
//! `genai_config.json` in its place.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use seatbelt_tokens::Tokenizer;
use serde::Deserialize;
use serde_json::Value;

use crate::{config::ModelConfig, error::NeuronError, model};

const CONFIG_FILE: &str = "config.json";
/// Where sentence-transformers say how much of a text is read, which may be less than the graph takes.
const SENTENCE_FILE: &str = "sentence_bert_config.json";
/// Where they say how the vectors of tokens become that of a text.
const POOLING_FILE: &str = "1_Pooling/config.json";
const GRAPH_FILES: [&str; 2] = ["model.onnx", "onnx/model.onnx"];
const TOKENIZER_FILE: &str = "tokenizer.json";

/// An encoder's folder, read.
#[derive(Debug)]
pub(crate) struct EncoderFolder {
    pub(crate) file: PathBuf,
    pub(crate) tokenizer: Tokenizer,
    /// Most tokens of a text.
    pub(crate) context: usize,
    /// Tokens are below this.
    pub(crate) vocab: u32,
    /// Numbers of a vector, where the graph does not say.
    pub(crate) width: Option<usize>,
    pub(crate) pooling: Pooling,
}

/// How the vectors of tokens become that of their text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pooling {
    /// By their mean.
    Mean,
    /// The first token's is taken.
    First,
}

/// Whether a folder is one of an encoder.
pub(crate) fn is_encoder(folder: &Path) -> bool {
    !folder.join(model::CONFIG_FILE).exists() && folder.join(CONFIG_FILE).exists()
}

#[derive(Deserialize)]
struct Config {
    max_position_embeddings: usize,
    vocab_size: u32,
    hidden_size: Option<usize>,
}

#[derive(Deserialize)]
struct Sentences {
    max_seq_length: Option<usize>,
}

/// Several may be set, one behind the other.
#[derive(Deserialize)]
#[serde(default)]
struct Pools {
    pooling_mode_mean_tokens: bool,
    pooling_mode_cls_token: bool,
    #[serde(flatten)]
    others: BTreeMap<String, Value>,
}

impl Default for Pools {
    fn default() -> Self {
        Self {
            pooling_mode_mean_tokens: true,
            pooling_mode_cls_token: false,
            others: BTreeMap::new(),
        }
    }
}

impl Pools {
    fn pooling(&self) -> Result<Pooling, String> {
        let mut others = self.others.iter();
        let other = others.find(|(name, set)| name.starts_with("pooling_mode_") && **set == true);
        match (
            self.pooling_mode_mean_tokens,
            self.pooling_mode_cls_token,
            other,
        ) {
            (true, false, None) => Ok(Pooling::Mean),
            (false, true, None) => Ok(Pooling::First),
            _ => Err(format!(
                "{POOLING_FILE}: only the mean of all tokens or the first of them is served"
            )),
        }
    }
}

impl EncoderFolder {
    pub(crate) fn read(config: &ModelConfig) -> Result<Self, NeuronError> {
        read(config).map_err(|detail| NeuronError::Model {
            model: config.id.to_string(),
            detail,
        })
    }
}

fn read(config: &ModelConfig) -> Result<EncoderFolder, String> {
    let folder = &config.path;
    let said: Config = model::read_json(&folder.join(CONFIG_FILE))?;
    let sentences = folder.join(SENTENCE_FILE);
    let sentences: Option<Sentences> = match sentences.exists() {
        true => Some(model::read_json(&sentences)?),
        false => None,
    };
    let pools = folder.join(POOLING_FILE);
    let pools: Pools = match pools.exists() {
        true => model::read_json(&pools)?,
        false => Pools::default(),
    };
    let limits = [
        sentences.and_then(|said| said.max_seq_length),
        config.context,
    ];
    let context = limits
        .into_iter()
        .flatten()
        .fold(said.max_position_embeddings, usize::min);
    if context == 0 {
        return Err(format!(
            "{CONFIG_FILE}: max_position_embeddings leaves no room for a text"
        ));
    }
    let files = GRAPH_FILES.map(|file| folder.join(file));
    let file = files.into_iter().find(|file| file.exists());
    let file = file.ok_or_else(|| {
        format!(
            "{} has no {}",
            folder.display(),
            GRAPH_FILES.join(" and no ")
        )
    })?;
    let path = folder.join(TOKENIZER_FILE);
    let text =
        fs::read(&path).map_err(|error| format!("cannot read {}: {error}", path.display()))?;
    let tokenizer =
        Tokenizer::parse(&text).map_err(|error| format!("{TOKENIZER_FILE}: {error}"))?;
    Ok(EncoderFolder {
        file,
        tokenizer,
        context,
        vocab: said.vocab_size,
        width: said.hidden_size,
        pooling: pools.pooling()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_pooled_as_its_folder_says_or_not_served() {
        let of = |text: &str| serde_json::from_str::<Pools>(text).unwrap().pooling().ok();
        assert_eq!(Pools::default().pooling().ok(), Some(Pooling::Mean));
        let first = r#"{"word_embedding_dimension": 384, "pooling_mode_cls_token": true, "pooling_mode_mean_tokens": false}"#;
        assert_eq!(of(first), Some(Pooling::First));
        let both = r#"{"pooling_mode_cls_token": true, "pooling_mode_mean_tokens": true}"#;
        let largest = r#"{"pooling_mode_mean_tokens": false, "pooling_mode_max_tokens": true}"#;
        let last = r#"{"pooling_mode_lasttoken": true}"#;
        for other in [both, largest, last] {
            assert_eq!(of(other), None, "{other}");
        }
    }
}
