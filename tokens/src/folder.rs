//! Where chat templates lie: beside the tokenizer, in a file of their own or in its configuration.

use std::{fs, path::Path};

use serde_json::Value;

use crate::{ChatTemplate, SpecialTokens, TokenizerError};

const TOKENIZER_CONFIG_FILE: &str = "tokenizer_config.json";
const TEMPLATE_FILE: &str = "chat_template.jinja";
/// Templates named in an error.
const NAMED_MAX: usize = 8;

/// The chat template beside a `tokenizer.json`, with the special tokens that its configuration names; nothing
/// where there is none.
pub fn template_beside(tokenizer: &Path) -> Result<Option<ChatTemplate>, TokenizerError> {
    let folder = tokenizer.parent().unwrap_or(Path::new("."));
    let Some(source) = template_source(folder)? else {
        return Ok(None);
    };
    let template = ChatTemplate::new(source, special_tokens(folder)?);
    template
        .map(Some)
        .map_err(|error| TokenizerError::new(format!("in {}: {error}", folder.display())))
}

/// The special tokens that a folder's tokenizer configuration names, empty where it names none: what
/// templates mean by them, which need not be what ends an answer.
pub fn special_tokens(folder: &Path) -> Result<SpecialTokens, TokenizerError> {
    let config = tokenizer_config(folder)?.unwrap_or_default();
    Ok(SpecialTokens {
        bos: special(&config, "bos_token"),
        eos: special(&config, "eos_token"),
    })
}

/// The source of a folder's chat template: newer builders write a file of its own.
pub fn template_source(folder: &Path) -> Result<Option<String>, TokenizerError> {
    let path = folder.join(TEMPLATE_FILE);
    if path.exists() {
        return read(&path).map(Some);
    }
    let config = tokenizer_config(folder)?.unwrap_or_default();
    match &config["chat_template"] {
        Value::Array(several) => default_template(several).map(Some),
        one => Ok(one.as_str().map(str::to_owned)),
    }
}

/// Some models have several, of which one is called `default`. Which of several others is meant, nobody
/// can know.
fn default_template(several: &[Value]) -> Result<String, TokenizerError> {
    let default = several.iter().find(|one| one["name"] == "default");
    let chosen = default.or(match several {
        [one] => Some(one),
        _ => None,
    });
    let text = chosen.and_then(|one| one["template"].as_str());
    text.map(str::to_owned).ok_or_else(|| {
        let names = several.iter().map(|one| one["name"].as_str().unwrap_or("?"));
        let names: Vec<&str> = names.take(NAMED_MAX).collect();
        TokenizerError::new(format!(
            "{TOKENIZER_CONFIG_FILE}: chat_template is a list without one called default (it has: {}): write the one to use \
             to {TEMPLATE_FILE}",
            names.join(", ")
        ))
    })
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
        let hi = ChatMessage::says("user", "hi");
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
        let single =
            format!(r#"{{"chat_template": [{{"name": "rag", "template": "{template}"}}]}}"#);
        assert_eq!(rendered(&single).as_deref(), Some("hi"));
    }

    #[test]
    fn of_several_templates_without_a_default_none_is_guessed() {
        let folder = tempfile::tempdir().unwrap();
        let config = r#"{"chat_template": [{"name": "rag", "template": "a"}, {"name": "tool_use", "template": "b"}]}"#;
        fs::write(folder.path().join(TOKENIZER_CONFIG_FILE), config).unwrap();
        let error = template_source(folder.path()).unwrap_err().to_string();
        assert!(
            error.contains("rag, tool_use") && error.contains(TEMPLATE_FILE),
            "{error}"
        );
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
