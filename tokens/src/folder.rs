//! Where chat templates lie: beside the tokenizer, in a file of their own or in its configuration.

use std::{fs, path::Path};

use serde_json::Value;

use crate::{ChatTemplate, SpecialTokens, TokenizerError};

const TOKENIZER_CONFIG_FILE: &str = "tokenizer_config.json";
const TEMPLATE_FILE: &str = "chat_template.jinja";

/// The chat template beside a `tokenizer.json`, with the special tokens that its configuration names; nothing
/// where there is none.
pub fn template_beside(tokenizer: &Path) -> Result<Option<ChatTemplate>, TokenizerError> {
    let folder = tokenizer.parent().unwrap_or(Path::new("."));
    let Some(source) = template_source(folder)? else {
        return Ok(None);
    };
    let config = tokenizer_config(folder)?.unwrap_or_default();
    let tokens = SpecialTokens {
        bos: special(&config, "bos_token"),
        eos: special(&config, "eos_token"),
    };
    let template = ChatTemplate::new(source, tokens);
    template
        .map(Some)
        .map_err(|error| TokenizerError::new(format!("in {}: {error}", folder.display())))
}

/// The source of a folder's chat template: newer builders write a file of its own.
pub fn template_source(folder: &Path) -> Result<Option<String>, TokenizerError> {
    let path = folder.join(TEMPLATE_FILE);
    if path.exists() {
        return read(&path).map(Some);
    }
    let config = tokenizer_config(folder)?;
    Ok(config.and_then(|config| default_template(config.get("chat_template")?)))
}

/// Some models have several, of which one is called `default`.
fn default_template(value: &Value) -> Option<String> {
    let text = match value {
        Value::Array(several) => {
            let default = several.iter().find(|one| one["name"] == "default")?;
            default.get("template")?
        }
        one => one,
    };
    text.as_str().map(str::to_owned)
}

fn tokenizer_config(folder: &Path) -> Result<Option<Value>, TokenizerError> {
    let path = folder.join(TOKENIZER_CONFIG_FILE);
    if !path.exists() {
        return Ok(None);
    }
    let read = serde_json::from_str(&read(&path)?);
    read.map(Some)
        .map_err(|error| TokenizerError::new(format!("{}: {error}", path.display())))
}

/// Written as a text, or as an object that has it.
fn special(config: &Value, name: &str) -> String {
    let token = &config[name];
    let text = token.as_str().or_else(|| token["content"].as_str());
    text.unwrap_or_default().to_owned()
}

fn read(path: &Path) -> Result<String, TokenizerError> {
    fs::read_to_string(path)
        .map_err(|error| TokenizerError::new(format!("cannot read {}: {error}", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ChatMessage;

    fn rendered(config: &str) -> Option<String> {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(TOKENIZER_CONFIG_FILE), config).unwrap();
        let template = template_beside(&folder.path().join("tokenizer.json")).unwrap()?;
        let hi = ChatMessage {
            role: "user".to_owned(),
            content: "hi".to_owned(),
            name: None,
        };
        Some(template.render(&[hi]).unwrap())
    }

    #[test]
    fn a_template_is_found_in_the_configuration_with_its_special_tokens() {
        let template = "{{ bos_token }}{{ messages[0].content }}{{ eos_token }}";
        let one = format!(
            r#"{{"chat_template": "{template}", "bos_token": "<s>", "eos_token": {{"content": "</s>"}}}}"#
        );
        assert_eq!(rendered(&one).as_deref(), Some("<s>hi</s>"));
        let several = format!(
            r#"{{"chat_template": [{{"name": "tool_use", "template": ""}}, {{"name": "default", "template": "{template}"}}]}}"#
        );
        assert_eq!(rendered(&several).as_deref(), Some("hi"));
        assert_eq!(rendered("{}"), None);
    }

    #[test]
    fn the_tiny_model_has_a_file_of_its_own() {
        let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models");
        assert!(
            template_beside(&models.join("tiny/tokenizer.json"))
                .unwrap()
                .is_some()
        );
        assert!(
            template_beside(&models.join("none/tokenizer.json"))
                .unwrap()
                .is_none()
        );
    }
}
