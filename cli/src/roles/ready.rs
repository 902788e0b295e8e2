//! What is told once requests are served: a line for machines, and the same for people.

use std::fmt::Write as _;

use crate::config::Config;

/// Where the printed example finds a secret.
const KEY_VARIABLE: &str = "SEATBELT_KEY";

/// What listens where.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ready {
    /// The gateway, for clients.
    pub gateway: Option<String>,
    /// The gateway's metrics.
    pub metrics: Option<String>,
    pub neuron: Option<String>,
    /// The NATS servers, without credentials.
    pub nats: String,
    /// Why some requests that cost would be turned away.
    pub reasons: Vec<String>,
    /// What will be a reason soon, or keeps what is derived from being made.
    pub warnings: Vec<String>,
    /// A request to try, where there is a key and a model for it.
    pub example: Option<String>,
}

impl Ready {
    /// One line of JSON.
    pub fn line(&self) -> String {
        let mut line = serde_json::json!({ "ready": true });
        let parts = [
            ("gateway", &self.gateway),
            ("metrics", &self.metrics),
            ("neuron", &self.neuron),
        ];
        for (name, url) in parts {
            if let Some(url) = url {
                line[name] = url.as_str().into();
            }
        }
        line["nats"] = self.nats.as_str().into();
        if !self.reasons.is_empty() {
            line["reasons"] = self.reasons.clone().into();
        }
        if !self.warnings.is_empty() {
            line["warnings"] = self.warnings.clone().into();
        }
        line.to_string()
    }

    /// A few lines for people.
    pub fn text(&self) -> String {
        let mut text = String::new();
        let parts = [
            ("gateway", self.gateway.as_deref()),
            ("metrics", self.metrics.as_deref()),
            ("neuron", self.neuron.as_deref()),
            ("nats", Some(self.nats.as_str())),
        ];
        for (name, url) in parts {
            if let Some(url) = url {
                // writing to a string cannot fail
                let _ = writeln!(text, "{name:<8} {url}");
            }
        }
        for reason in &self.reasons {
            let _ = writeln!(text, "not ready: {reason}");
        }
        for warning in &self.warnings {
            let _ = writeln!(text, "warning: {warning}");
        }
        if let Some(example) = &self.example {
            let _ = write!(text, "\ntry it:\n{example}");
        }
        text.trim_end().to_owned()
    }
}

/// A `curl` for the first model with the first declared key. Standard error may be kept as a log, so the secret is
/// not in it: the shell takes it from [`KEY_VARIABLE`].
pub(super) fn example(config: &Config, gateway: &str) -> Option<String> {
    let key = config.keys.first()?;
    let own = config.neuron.iter().flat_map(|neuron| &neuron.models);
    let foreign = config
        .upstreams
        .iter()
        .flat_map(|upstream| &upstream.models);
    let model = own
        .map(|model| &model.id)
        .chain(foreign.map(|model| &model.id))
        .next()
        .filter(|model| !model.as_str().contains('\''))?;
    let body = serde_json::json!({
        "model": model.as_str(),
        "messages": [{"role": "user", "content": "Hello!"}],
        "max_tokens": 32,
    });
    Some(format!(
        "# {KEY_VARIABLE} is the secret of {}, as the configuration has it\n\
         curl {gateway}/v1/chat/completions \\\n  -H \"authorization: Bearer ${KEY_VARIABLE}\" \\\n  \
         -H 'content-type: application/json' -d '{body}'",
        key.key
    ))
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, path::Path};

    use super::*;

    #[test]
    fn the_line_has_the_fields_of_the_contract_in_order() {
        let ready = Ready {
            gateway: Some("http://127.0.0.1:8080".to_owned()),
            metrics: Some("http://127.0.0.1:9090".to_owned()),
            nats: "nats://127.0.0.1:4222".to_owned(),
            ..Ready::default()
        };
        assert_eq!(
            ready.line(),
            r#"{"ready":true,"gateway":"http://127.0.0.1:8080","metrics":"http://127.0.0.1:9090","nats":"nats://127.0.0.1:4222"}"#
        );
        assert!(ready.text().contains("gateway  http://127.0.0.1:8080"));
        let troubled = Ready {
            reasons: vec!["partition 01 is not served".to_owned()],
            warnings: vec!["partition 02, feed: stands still".to_owned()],
            ..ready
        };
        let end = r#","reasons":["partition 01 is not served"],"warnings":["partition 02, feed: stands still"]}"#;
        assert!(troubled.line().ends_with(end), "{}", troubled.line());
        assert!(troubled.text().contains("not ready: partition 01"));
        assert!(troubled.text().contains("warning: partition 02"));
    }

    #[test]
    fn the_example_takes_the_secret_from_the_environment_and_does_not_show_it() {
        let text = concat!(
            "[[entitlements.keys]]\nkey = \"sk-hush\" # ours\naccount_id = \"a\"\nkey_id = \"k\"\n",
            "[neuron]\nmodels = [{ id = \"tiny\", path = \"m\" }]\n"
        );
        let config = Config::from_text(text, &BTreeMap::new(), Path::new("/")).unwrap();
        let example = example(&config, "http://here").unwrap();
        assert!(!example.contains("sk-hush"), "{example}");
        assert!(example.contains("the secret of k,"), "{example}");
        // what the shell makes of it, with a curl that says how it was called
        let shell = std::process::Command::new("/bin/sh")
            .args(["-c", &format!("curl() {{ echo \"$@\"; }}\n{example}")])
            .env(KEY_VARIABLE, "sk-hush")
            .output();
        let called = String::from_utf8(shell.unwrap().stdout).unwrap();
        let expected = "http://here/v1/chat/completions -H authorization: Bearer sk-hush -H ";
        assert!(called.starts_with(expected), "{called}");
    }
}
