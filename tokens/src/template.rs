//! Renders a chat into the text that the model was trained on, with the model's own Jinja template.
//!
//! Templates come with models and are not trusted: they run with bounded fuel and depth, and see
//! nothing but the messages and the model's special tokens.

use std::collections::BTreeMap;

use minijinja::{Environment, ErrorKind, Value, context, syntax::SyntaxConfig, value::Serde};
use thiserror::Error;

use crate::{builtins, source::without_marks};

/// What one rendering may take: about one for each instruction, and for each 64 bytes that it makes, so that this
/// bounds its memory too. A few messages get [`FUEL_LEAST`], 32 MB; more of them, and longer ones, get more.
const FUEL_LEAST: u64 = 500_000;
/// Of each message. Templates that look back from each message at those before it stay well below.
const FUEL_PER_MESSAGE: u64 = 2_000;
/// Of each byte: what is copied 16 times over takes a quarter of it.
const FUEL_PER_BYTE: u64 = 1;
/// The longest body allowed needs well under a tenth of it.
const FUEL_MAX: u64 = 20_000_000;

const _: () = assert!(FUEL_LEAST < FUEL_MAX);

/// What rendering these may take.
fn fuel(messages: &[ChatMessage], tools: Option<&serde_json::Value>) -> u64 {
    let texts = messages
        .iter()
        .map(|message| message.content.len() + message.calls_bytes())
        .sum::<usize>();
    let tools = tools.map_or(0, |tools| tools.to_string().len());
    let of = |count: usize, each: u64| (count as u64).saturating_mul(each);
    FUEL_LEAST
        .saturating_add(of(messages.len(), FUEL_PER_MESSAGE))
        .saturating_add(of(texts.saturating_add(tools), FUEL_PER_BYTE))
        .min(FUEL_MAX)
}
/// Depth of nested calls one rendering may take.
const RECURSION_MAX: usize = 200;
const NAME: &str = "chat";

/// One message of a chat, its content already reduced to text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChatMessage {
    /// Who speaks.
    pub role: String,
    /// What is said.
    pub content: String,
    /// The name of who speaks.
    pub name: Option<String>,
    /// The tools that it calls, a list of at least one.
    pub tool_calls: Option<serde_json::Value>,
    /// The call that it answers.
    pub tool_call_id: Option<String>,
}

impl ChatMessage {
    /// Somebody who says something, and nothing else.
    pub fn says(role: &str, content: &str) -> Self {
        Self {
            role: role.to_owned(),
            content: content.to_owned(),
            name: None,
            tool_calls: None,
            tool_call_id: None,
        }
    }

    fn calls_bytes(&self) -> usize {
        (self.tool_calls.as_ref()).map_or(0, |calls| calls.to_string().len())
    }

    fn value(&self) -> Value {
        let name = self.name.as_deref().map(|name| ("name", Value::from(name)));
        let answered = self.tool_call_id.as_deref();
        let answered = answered.map(|id| ("tool_call_id", Value::from(id)));
        let calls = self.tool_calls.as_ref();
        let calls = calls.map(|calls| ("tool_calls", Value::from(Serde(calls.clone()))));
        let fields = [
            ("role", Value::from(self.role.as_str())),
            ("content", Value::from(self.content.as_str())),
        ];
        fields
            .into_iter()
            .chain(name)
            .chain(answered)
            .chain(calls)
            .collect::<BTreeMap<_, _>>()
            .into()
    }
}

/// Special tokens a template may name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SpecialTokens {
    /// Before the text.
    pub bos: String,
    /// After it.
    pub eos: String,
}

/// Why a chat could not be rendered.
#[derive(Debug, Error)]
pub enum TemplateError {
    /// The template refused the messages, in its own words.
    #[error("{0}")]
    Refused(String),
    /// The template itself does not work.
    #[error("the chat template does not work: {0}")]
    Broken(String),
}

/// A compiled chat template.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    tokens: SpecialTokens,
    takes_tools: bool,
}

impl ChatTemplate {
    /// Compiles a template.
    pub fn new(source: String, tokens: SpecialTokens) -> Result<Self, TemplateError> {
        let mut environment = Environment::new();
        environment.set_recursion_limit(RECURSION_MAX);
        // As the Python library that templates are written for renders them.
        environment.set_syntax(
            SyntaxConfig::builder()
                .trim_blocks(true)
                .lstrip_blocks(true)
                .build()
                .map_err(explain)?,
        );
        environment
            .set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", refuse);
        environment.add_function("strftime_now", builtins::strftime_now);
        environment.add_filter("tojson", builtins::tojson);
        environment
            .add_template_owned(NAME, without_marks(source))
            .map_err(|error| TemplateError::Broken(error.to_string()))?;
        let template = environment.get_template(NAME).map_err(explain)?;
        let takes_tools = template.undeclared_variables(false).contains("tools");
        Ok(Self {
            environment,
            tokens,
            takes_tools,
        })
    }

    /// Whether it looks at tools at all.
    pub fn takes_tools(&self) -> bool {
        self.takes_tools
    }

    /// The prompt for `messages`, ending where the assistant's answer begins.
    pub fn render(&self, messages: &[ChatMessage]) -> Result<String, TemplateError> {
        self.render_with(messages, None)
    }

    /// Renders the plainest chats, of which a template that works takes one at least: none has roles or orders of
    /// its own there.
    pub fn try_plain(&self) -> Result<(), TemplateError> {
        let says = |role| ChatMessage::says(role, "hi");
        let with_system = self.render(&[says("system"), says("user")]);
        with_system
            .or_else(|_| self.render(&[says("user")]))
            .map(drop)
    }

    /// The same with tools.
    pub(crate) fn render_with(
        &self,
        messages: &[ChatMessage],
        tools: Option<&serde_json::Value>,
    ) -> Result<String, TemplateError> {
        // what is compiled is shared by its copies
        let mut environment = self.environment.clone();
        environment.set_fuel(Some(fuel(messages, tools)));
        let template = environment.get_template(NAME).map_err(explain)?;
        let values = context! {
            tools => tools.map_or(Value::UNDEFINED, |tools| Value::from(Serde(tools.clone()))),
            messages => messages.iter().map(ChatMessage::value).collect::<Vec<Value>>(),
            bos_token => self.tokens.bos.as_str(),
            eos_token => self.tokens.eos.as_str(),
            add_generation_prompt => true,
        };
        template.render(values).map_err(explain)
    }
}

fn refuse(message: String) -> Result<Value, minijinja::Error> {
    Err(minijinja::Error::new(ErrorKind::InvalidOperation, message).with_source(RefusedByTemplate))
}

/// Marks an error as the template's own refusal.
#[derive(Debug, Error)]
#[error("refused by the chat template")]
struct RefusedByTemplate;

#[expect(clippy::needless_pass_by_value, reason = "used as a map_err function")]
fn explain(error: minijinja::Error) -> TemplateError {
    let refused =
        std::error::Error::source(&error).is_some_and(|source| source.is::<RefusedByTemplate>());
    match error.detail() {
        Some(detail) if refused => TemplateError::Refused(detail.to_owned()),
        _ => TemplateError::Broken(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn template(source: &str) -> ChatTemplate {
        let tokens = SpecialTokens {
            bos: "<s>".to_owned(),
            eos: "</s>".to_owned(),
        };
        ChatTemplate::new(source.to_owned(), tokens).unwrap()
    }

    fn says(role: &str, content: &str) -> ChatMessage {
        ChatMessage::says(role, content)
    }

    #[test]
    fn messages_tokens_and_the_generation_prompt_are_rendered() {
        let template = template(
            "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}] {{ m.content.strip() }}{{ eos_token }}{% endfor %}\
             {% if add_generation_prompt %}[assistant]{% endif %}",
        );
        let text = template
            .render(&[says("system", " be brief "), says("user", "hi")])
            .unwrap();
        assert_eq!(text, "<s>[system] be brief</s>[user] hi</s>[assistant]");
    }

    /// What other libraries for templates take, this one takes too.
    #[track_caller]
    fn check(source: &str, expected: &str) {
        let messages = [says("system", "s"), says("user", "<a & 'b'>")];
        assert_eq!(template(source).render(&messages).unwrap(), expected);
    }

    #[test]
    fn loops_may_be_left_and_gone_on_with() {
        check(
            "{% for m in messages %}{% if m.role == 'system' %}{% continue %}{% endif %}{{ m.role }}{% break %}{% endfor %}",
            "user",
        );
    }

    #[test]
    fn marks_for_training_write_nothing() {
        check("a{% generation %}b{% endgeneration %}c", "abc");
    }

    #[test]
    fn json_is_written_as_python_writes_it() {
        check(
            "{{ messages[1] | tojson }}",
            r#"{"content": "<a & 'b'>", "role": "user"}"#,
        );
        check(
            "{{ [1, [], {}, 'é'] | tojson(ensure_ascii=False) }}",
            r#"[1, [], {}, "é"]"#,
        );
        check(
            "{{ {'a': [1]} | tojson(indent=2) }}",
            "{\n  \"a\": [\n    1\n  ]\n}",
        );
    }

    #[test]
    fn calls_answers_and_definitions_of_tools_are_seen() {
        let source = "{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}\
            {% if m.tool_calls %}{% for call in m.tool_calls %}{{ call.function.name }}{{ call.function.arguments | tojson }}{% endfor %}\
            {% elif m.role == 'tool' %}{{ m.tool_call_id }}={{ m.content }}{% else %}{{ m.content }}{% endif %};{% endfor %}";
        let template = template(source);
        assert!(template.takes_tools());
        let call =
            serde_json::json!([{ "function": { "name": "f", "arguments": { "b": 1, "a": 2 } } }]);
        let messages = [
            says("user", "hi"),
            ChatMessage {
                tool_calls: Some(call),
                ..says("assistant", "")
            },
            ChatMessage {
                tool_call_id: Some("1".to_owned()),
                ..says("tool", "5")
            },
        ];
        let tools = serde_json::json!([{ "type": "function" }]);
        let text = template.render_with(&messages, Some(&tools)).unwrap();
        assert_eq!(text, r#"[{"type": "function"}]hi;f{"b": 1, "a": 2};1=5;"#);
        assert!(!self::template("{{ messages[0].tools }}").takes_tools());
    }

    #[test]
    fn the_date_can_be_asked_for() {
        let text = template("{{ strftime_now('%Y') }}")
            .render(&[says("user", "hi")])
            .unwrap();
        assert!(text.len() == 4 && text.starts_with("20"), "{text}");
    }

    #[test]
    fn json_without_end_runs_out() {
        let source = "{% for a in range(100000) %}{% set x = messages | tojson %}{% endfor %}";
        let long = says("user", &"x".repeat(1 << 20));
        let error = template(source).render(&[long]).unwrap_err();
        assert!(matches!(error, TemplateError::Broken(words) if words.contains("fuel")));
    }

    #[test]
    fn a_refusal_of_the_template_keeps_its_words() {
        let template = template("{{ raise_exception('roles must alternate') }}");
        let error = template.render(&[says("user", "hi")]).unwrap_err();
        assert!(matches!(error, TemplateError::Refused(words) if words == "roles must alternate"));
    }

    #[test]
    fn a_template_that_never_ends_runs_out_of_fuel() {
        let source = "{% for a in range(10000) %}{% for b in range(10000) %}{{ a * b }}{% endfor %}{% endfor %}";
        let error = template(source).render(&[says("user", "hi")]).unwrap_err();
        assert!(matches!(error, TemplateError::Broken(words) if words.contains("fuel")));
    }

    #[test]
    fn a_short_chat_makes_no_long_text() {
        let doubled = "{% set ns = namespace(s='0123456789abcdef') %}{% for i in range(60) %}\
                       {% set ns.s = ns.s ~ ns.s %}{% if ns.s | length > 40000000 %}{{ raise_exception('too far') }}{% endif %}{% endfor %}";
        let error = template(doubled).render(&[says("user", "hi")]).unwrap_err();
        assert!(matches!(error, TemplateError::Broken(words) if words.contains("fuel")));
    }

    #[test]
    fn long_chats_are_rendered_in_time_and_memory() {
        // as many templates do: each message looks at the one before, and the texts are trimmed and joined
        let plain = "{% set ns = namespace(last='') %}{% for m in messages %}{% if not loop.first and messages[loop.index0 - 1].role == m.role %}x{% endif %}\
                     {% set content = m.content | trim %}<|{{ m.role }}|>{{ content ~ eos_token }}{% set ns.last = m.role %}{% endfor %}";
        let many: Vec<ChatMessage> = (0..9_000).map(|_| says("user", "hi")).collect();
        assert!(template(plain).render(&many).is_ok());
        let long = says("user", &"x".repeat(4 << 20));
        assert!(template(plain).render(&[long]).is_ok());
    }

    #[test]
    fn a_template_that_takes_no_chat_at_all_is_found_out() {
        let plain = |source: &str| template(source).try_plain();
        assert!(plain("{{ messages[0].content }}").is_ok());
        let no_system =
            "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}x";
        assert!(plain(no_system).is_ok());
        assert!(plain("{{ raise_exception('never') }}").is_err());
        assert!(plain("{{ messages | nofilter }}").is_err());
    }

    #[test]
    fn a_template_that_does_not_parse_is_refused_at_load() {
        assert!(ChatTemplate::new("{% for".to_owned(), SpecialTokens::default()).is_err());
    }
}
