//! A model folder in the layout of the onnxruntime-genai model builder: what it says of itself.
//!
//! Read once at start. Anything missing or at odds is an error that names the file. The weights are
//! not touched here; that is the session's.

use std::{
    fs,
    path::{Path, PathBuf},
};

use bytes::Bytes;
use seatbelt_tokens::{
    Chat, ChatTemplate, PromptError, Recipe, SpecialTokens, Tokenizer, chat_prompt, template_source,
};
use serde::{Deserialize, de::DeserializeOwned};

use crate::{calls::CallFormat, config::ModelConfig, error::NeuronError, shape::Shapes};

pub(crate) const CONFIG_FILE: &str = "genai_config.json";
const TOKENIZER_FILE: &str = "tokenizer.json";

/// The graph and the names of what goes in and out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct GraphSpec {
    pub(crate) file: PathBuf,
    pub(crate) layers: usize,
    pub(crate) kv_heads: usize,
    pub(crate) head_size: usize,
    pub(crate) input_ids: String,
    pub(crate) attention_mask: String,
    pub(crate) past_key: String,
    pub(crate) past_value: String,
    pub(crate) logits: String,
    pub(crate) present_key: String,
    pub(crate) present_value: String,
}

/// How tokens are chosen where the request does not say.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct SamplingDefaults {
    pub(crate) temperature: f32,
    pub(crate) top_p: f32,
    pub(crate) top_k: Option<usize>,
    pub(crate) repetition_penalty: f32,
}

/// A model folder, read.
#[derive(Debug)]
pub(crate) struct Model {
    pub(crate) graph: GraphSpec,
    /// Most tokens of input and output together.
    pub(crate) context: usize,
    /// Most output tokens of one request.
    pub(crate) output: usize,
    /// Tokens are below this.
    pub(crate) vocab: u32,
    pub(crate) eos: Vec<u32>,
    pub(crate) sampling: SamplingDefaults,
    pub(crate) tokenizer: Tokenizer,
    template: Option<ChatTemplate>,
    /// How it writes calls of tools, where that is known.
    pub(crate) call_format: Option<CallFormat>,
    /// Reads what answers have to look like.
    pub(crate) shapes: Shapes,
    /// What gateways count its chats by.
    pub(crate) recipe: HandedOut,
}

/// A recipe as it is handed out, and its name.
#[derive(Debug)]
pub(crate) struct HandedOut {
    pub(crate) name: String,
    pub(crate) encoded: Bytes,
}

impl HandedOut {
    fn new(recipe: &Recipe) -> Self {
        let encoded = Bytes::from(recipe.encode());
        Self {
            name: Recipe::name_of(&encoded),
            encoded,
        }
    }
}

impl Model {
    /// Reads the folder of a configured model.
    pub(crate) fn load(config: &ModelConfig) -> Result<Self, NeuronError> {
        let folder = &config.path;
        load(folder, config).map_err(|detail| NeuronError::Model {
            model: config.id.to_string(),
            detail,
        })
    }

    /// The tokens of a chat, up to where the answer begins.
    pub(crate) fn chat_prompt(&self, chat: &Chat) -> Result<Vec<u32>, PromptError> {
        chat_prompt(self.template.as_ref(), &self.tokenizer, chat)
    }

    /// The tokens of a plain text, with the tokens that the tokenizer puts around every text.
    pub(crate) fn plain_prompt(&self, text: &str) -> Result<Vec<u32>, PromptError> {
        Ok(self.tokenizer.encode_plain(text)?)
    }
}

fn load(folder: &Path, config: &ModelConfig) -> Result<Model, String> {
    let genai: GenaiConfig = read_json(&folder.join(CONFIG_FILE))?;
    let tokenizer_text = read_text(&folder.join(TOKENIZER_FILE))?;
    let tokenizer = Tokenizer::parse(tokenizer_text.as_bytes())
        .map_err(|error| format!("{TOKENIZER_FILE}: {error}"))?;
    let context = config
        .context
        .unwrap_or(genai.model.context_length)
        .min(genai.model.context_length);
    if context < 2 {
        return Err(format!(
            "{CONFIG_FILE}: context_length {context} leaves no room for input and output"
        ));
    }
    let search = genai.search.unwrap_or_default();
    let eos = genai.model.eos_token_id.clone().into_vec();
    let bos = genai.model.bos_token_id;
    let source = template_source(folder).map_err(|error| error.to_string())?;
    let named = seatbelt_tokens::special_tokens(folder).map_err(|error| error.to_string())?;
    let special = special_tokens(named, &tokenizer, bos, &eos);
    let recipe = HandedOut::new(&Recipe {
        tokenizer: tokenizer_text,
        template: source.clone(),
        bos: special.bos.clone(),
        eos: special.eos.clone(),
    });
    let call_format = source.as_deref().and_then(CallFormat::of_template);
    let template = source.map(|source| ChatTemplate::new(source, special));
    let template = template.transpose().map_err(|error| error.to_string())?;
    if let Some(Err(error)) = template.as_ref().map(ChatTemplate::try_plain) {
        return Err(format!(
            "the chat template takes no chat, not even one of a single message: {error}; repair it, or take it away and only /v1/completions is served"
        ));
    }
    let shapes = Shapes::new(tokenizer.clone(), genai.model.vocab_size, eos.clone());
    Ok(Model {
        graph: genai.model.decoder.graph(folder),
        context,
        output: config.output.unwrap_or(context).min(context - 1),
        vocab: genai.model.vocab_size,
        eos,
        sampling: search.defaults(),
        tokenizer,
        template,
        call_format,
        shapes,
        recipe,
    })
}

/// The special tokens by their names in a template: those of the tokenizer's configuration, and where it
/// names none, those by which the builder says that a text begins and ends.
fn special_tokens(
    named: SpecialTokens,
    tokenizer: &Tokenizer,
    bos: Option<u32>,
    eos: &[u32],
) -> SpecialTokens {
    let text_of = |token: Option<u32>| {
        token
            .and_then(|token| tokenizer.text_of(token))
            .unwrap_or_default()
    };
    let or = |named: String, token| {
        if named.is_empty() {
            text_of(token)
        } else {
            named
        }
    };
    SpecialTokens {
        bos: or(named.bos, bos),
        eos: or(named.eos, eos.first().copied()),
    }
}

fn read_text(path: &Path) -> Result<String, String> {
    fs::read_to_string(path).map_err(|error| format!("cannot read {}: {error}", path.display()))
}

pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T, String> {
    serde_json::from_str(&read_text(path)?).map_err(|error| format!("{}: {error}", path.display()))
}

#[derive(Deserialize)]
struct GenaiConfig {
    model: GenaiModel,
    search: Option<GenaiSearch>,
}

#[derive(Deserialize)]
struct GenaiModel {
    context_length: usize,
    vocab_size: u32,
    bos_token_id: Option<u32>,
    eos_token_id: OneOrMany,
    decoder: GenaiDecoder,
}

#[derive(Clone, Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(u32),
    Many(Vec<u32>),
}

impl OneOrMany {
    fn into_vec(self) -> Vec<u32> {
        match self {
            Self::One(one) => vec![one],
            Self::Many(many) => many,
        }
    }
}

#[derive(Deserialize)]
struct GenaiDecoder {
    filename: String,
    head_size: usize,
    num_hidden_layers: usize,
    num_key_value_heads: usize,
    inputs: GenaiInputs,
    outputs: GenaiOutputs,
}

#[derive(Deserialize)]
struct GenaiInputs {
    input_ids: String,
    attention_mask: String,
    past_key_names: String,
    past_value_names: String,
}

#[derive(Deserialize)]
struct GenaiOutputs {
    logits: String,
    present_key_names: String,
    present_value_names: String,
}

impl GenaiDecoder {
    fn graph(self, folder: &Path) -> GraphSpec {
        GraphSpec {
            file: folder.join(self.filename),
            layers: self.num_hidden_layers,
            kv_heads: self.num_key_value_heads,
            head_size: self.head_size,
            input_ids: self.inputs.input_ids,
            attention_mask: self.inputs.attention_mask,
            past_key: self.inputs.past_key_names,
            past_value: self.inputs.past_value_names,
            logits: self.outputs.logits,
            present_key: self.outputs.present_key_names,
            present_value: self.outputs.present_value_names,
        }
    }
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct GenaiSearch {
    do_sample: bool,
    temperature: Option<f32>,
    top_p: Option<f32>,
    top_k: Option<u32>,
    repetition_penalty: Option<f32>,
}

impl GenaiSearch {
    fn defaults(self) -> SamplingDefaults {
        let temperature = if self.do_sample {
            self.temperature.unwrap_or(1.0)
        } else {
            0.0
        };
        SamplingDefaults {
            temperature,
            top_p: self.top_p.unwrap_or(1.0),
            // Builders write 1 where nothing is to be left to chance; who asks for it wants more than one.
            top_k: (self.top_k.filter(|_| self.do_sample))
                .and_then(|count| usize::try_from(count).ok()),
            repetition_penalty: self.repetition_penalty.unwrap_or(1.0),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use seatbelt_schemas::ids::ModelId;
    use seatbelt_tokens::{ChatMessage, TemplateError};

    use super::*;

    /// The committed tiny model.
    pub(crate) fn tiny_folder() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/tiny")
    }

    pub(crate) fn tiny_config(slots: usize) -> ModelConfig {
        let id = ModelId::new("tiny").unwrap();
        ModelConfig {
            slots: Some(slots),
            ..ModelConfig::new(id, tiny_folder())
        }
    }

    fn says(role: &str, content: &str) -> Chat {
        Chat {
            messages: vec![ChatMessage::says(role, content)],
            tools: None,
        }
    }

    #[test]
    fn the_tiny_model_says_what_it_is() {
        let model = Model::load(&tiny_config(1)).unwrap();
        assert_eq!(
            (model.context, model.output, model.eos.as_slice()),
            (1024, 1023, [257].as_slice())
        );
        assert_eq!(
            (
                model.graph.layers,
                model.graph.kv_heads,
                model.graph.head_size
            ),
            (2, 2, 16)
        );
        assert_eq!(
            model.sampling,
            SamplingDefaults {
                temperature: 0.0,
                top_p: 1.0,
                top_k: None,
                repetition_penalty: 1.0,
            }
        );
    }

    #[test]
    fn a_chat_becomes_the_tokens_of_the_template() {
        let model = Model::load(&tiny_config(1)).unwrap();
        let tokens = model.chat_prompt(&says("user", "hi")).unwrap();
        assert_eq!(
            tokens,
            [256, 260, u32::from(b'h'), u32::from(b'i'), 257, 261]
        );
        assert!(matches!(
            model.chat_prompt(&says("oracle", "hi")),
            Err(PromptError::Template(TemplateError::Refused(words))) if words == "unknown role oracle"
        ));
    }

    #[test]
    fn what_a_model_asks_of_sampling_is_its_default() {
        let defaults = |text: &str| {
            serde_json::from_str::<GenaiSearch>(text)
                .unwrap()
                .defaults()
        };
        let asks = r#"{"do_sample": true, "top_k": 50, "repetition_penalty": 1.5}"#;
        let expected = SamplingDefaults {
            temperature: 1.0,
            top_p: 1.0,
            top_k: Some(50),
            repetition_penalty: 1.5,
        };
        assert_eq!(defaults(asks), expected);
        let greedy = defaults(r#"{"do_sample": false, "top_k": 1}"#);
        assert_eq!((greedy.temperature, greedy.top_k), (0.0, None));
    }

    #[test]
    fn a_configured_context_can_only_shrink_the_models_own() {
        let with = |context| {
            Model::load(&ModelConfig {
                context: Some(context),
                ..tiny_config(1)
            })
            .unwrap()
        };
        assert_eq!(with(100).context, 100);
        assert_eq!(with(100_000).context, 1024);
    }

    #[test]
    fn a_folder_without_its_files_is_an_error_that_names_them() {
        let folder = tempfile::tempdir().unwrap();
        let config = ModelConfig {
            path: folder.path().to_owned(),
            ..tiny_config(1)
        };
        let error = Model::load(&config).unwrap_err().to_string();
        assert!(
            error.contains("genai_config.json") && error.contains("tiny"),
            "{error}"
        );
    }

    #[test]
    fn an_older_folder_has_its_template_in_the_tokenizer_configuration() {
        let folder = tempfile::tempdir().unwrap();
        for file in [CONFIG_FILE, TOKENIZER_FILE] {
            fs::copy(tiny_folder().join(file), folder.path().join(file)).unwrap();
        }
        let config = ModelConfig {
            path: folder.path().to_owned(),
            ..tiny_config(1)
        };
        let without = Model::load(&config).unwrap();
        assert!(matches!(
            without.chat_prompt(&says("user", "x")),
            Err(PromptError::NoTemplate)
        ));
        fs::write(
            folder.path().join("tokenizer_config.json"),
            r#"{"chat_template":"{{ messages[0].content }}"}"#,
        )
        .unwrap();
        let with = Model::load(&config).unwrap();
        assert_eq!(
            with.chat_prompt(&says("user", "x")).unwrap(),
            [u32::from(b'x')]
        );
    }

    #[test]
    fn the_tokenizer_configuration_says_what_a_template_means_by_its_special_tokens() {
        let folder = tempfile::tempdir().unwrap();
        for file in [CONFIG_FILE, TOKENIZER_FILE] {
            fs::copy(tiny_folder().join(file), folder.path().join(file)).unwrap();
        }
        let config = ModelConfig {
            path: folder.path().to_owned(),
            ..tiny_config(1)
        };
        let says_of = |tokenizer_config: &str| {
            let path = folder.path().join("tokenizer_config.json");
            fs::write(path, tokenizer_config).unwrap();
            let model = Model::load(&config).unwrap();
            model.chat_prompt(&says("user", "x")).unwrap()
        };
        let template = r#""chat_template": "{{ bos_token }}{{ eos_token }}""#;
        assert_eq!(says_of(&format!("{{{template}}}")), [256, 257]);
        let named = format!(r#"{{{template}, "bos_token": null, "eos_token": "<|user|>"}}"#);
        assert_eq!(says_of(&named), [256, 260]);
    }
}
