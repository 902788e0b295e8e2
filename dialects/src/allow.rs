//! What a metered request may say: an allow-list, read as tables, which stand with each API.
//!
//! A list of bad fields cannot bound what an upstream does, since providers add one that changes the
//! bill about monthly. So a field that no table lists is refused by name, unless the operator accepts
//! it. What is listed either cannot raise the cost, or reaches the prompt at most with its bytes,
//! which [`crate::Ask`] counts. Refused for everybody is only what all keys of the gateway would
//! share ([`refuse_state`]). Not here: counting, and requests of keys without caps.

use std::sync::LazyLock;

use serde_json::{Value, json};

pub use crate::state::refuse_state;
use crate::{
    api::Api,
    dialect::Dialect,
    fields::{self, FieldError, Fields},
    media::{self, MediaLimits},
    provided::{self, Calls, Provided},
    served::{Aspect, Class},
};

/// Most characters of a client's own name that are shown back.
const ECHO_CHARS_MAX: usize = 40;

/// Names that bound a request. Servers that match names without regard to case take a variant of one
/// for it, so that no variant is let through, listed or not.
const BOUNDING: &[&str] = &[
    "max_tokens",
    "max_completion_tokens",
    "n",
    "best_of",
    "messages",
    "tools",
    "stream",
    "stream_options",
];

/// What a field may hold.
pub(crate) enum Holds {
    /// Anything: it cannot raise the cost beyond its bytes.
    Anything,
    /// A value that passes, and what to say of one that does not.
    Only(fn(&Value) -> bool, &'static str),
    /// An object of this shape.
    Object(Shape),
    /// Text or anything else that is no container, or a list of objects of one of these kinds.
    Parts(&'static [Kind]),
    /// A list of objects of one of these kinds.
    Each(&'static [Kind]),
}

/// The fields that an object may have.
pub(crate) type Shape = &'static [(&'static str, Holds)];

/// Objects told apart by their `type`.
pub(crate) struct Kind {
    /// The `type`: `*` at its end stands for a version (a date of eight digits), and none at all for an object without one.
    pub(crate) tag: &'static str,
    pub(crate) shape: Shape,
}

/// What is not allowed, and why.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) param: String,
    pub(crate) why: String,
}

/// Longest word of a setting.
const SETTING_BYTES_MAX: usize = 32;

/// A setting, whose bytes are not counted: a word, a number or a switch.
pub(crate) const SETTING: Holds =
    Holds::Only(is_setting, "it must be one word, a number or true or false");

fn is_setting(value: &Value) -> bool {
    match value {
        Value::String(word) => word.len() <= SETTING_BYTES_MAX,
        Value::Array(_) | Value::Object(_) => false,
        Value::Null | Value::Bool(_) | Value::Number(_) => true,
    }
}

fn is_version(text: &str) -> bool {
    text.len() == 8 && text.bytes().all(|digit| digit.is_ascii_digit())
}

/// Whose fields an upstream takes: which of them a metered request may use, and which class of price is
/// written into it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Profile {
    /// OpenAI itself.
    OpenAi,
    /// Anthropic itself.
    Anthropic,
    /// A server that speaks the API of one of them: vLLM, llama.cpp, Ollama and the like.
    Generic,
}

impl Profile {
    /// The profile of an upstream for which none was configured, by what it speaks and its host.
    pub fn of(dialect: Dialect, host: Option<&str>) -> Self {
        match dialect {
            Dialect::Anthropic => Self::Anthropic,
            Dialect::OpenAi if host == Some("api.openai.com") => Self::OpenAi,
            Dialect::OpenAi => Self::Generic,
        }
    }

    /// Whether such a server speaks this dialect.
    pub fn fits(self, dialect: Dialect) -> bool {
        match self {
            Self::OpenAi => dialect == Dialect::OpenAi,
            Self::Anthropic => dialect == Dialect::Anthropic,
            Self::Generic => true,
        }
    }
}

/// The lists that hold for a request.
#[derive(Debug, Clone, Copy)]
pub struct Allowed<'a> {
    /// What the upstream is asked in.
    pub api: Api,
    /// Whose server it is.
    pub profile: Profile,
    /// What the operator accepts besides, for the upstream and for the model.
    pub accepted: [&'a [String]; 2],
    /// The output maximum that the model has in any case.
    pub output_max: u64,
    /// The class that is asked for and has a price of its own.
    pub class: Option<&'a Class>,
    /// Tools that the provider runs and that have a price.
    pub tools: &'a [Provided],
    /// What is known of the model's images and sounds.
    pub media: MediaLimits,
}

impl Allowed<'_> {
    /// Refuses a body for what has no bound.
    pub fn check(&self, body: &Fields) -> Result<(), FieldError> {
        let found = body.keys().find_map(|name| variant(name));
        let found = found.or_else(|| {
            body.iter().find_map(|(name, value)| {
                let shapes = self.api.shapes(self.profile);
                self.field(shapes, name, name, value)
            })
        });
        let found = found.or_else(|| self.api.unbounded(body, self.output_max));
        match found {
            Some(Found { param, why }) => Err(FieldError::unbounded(param, why)),
            None => Ok(()),
        }
    }

    /// Refuses a header that turns on a feature which is not listed, where it is sent on.
    pub fn check_betas<'b>(&self, betas: impl Iterator<Item = &'b str>) -> Result<(), FieldError> {
        let Some(listed) = self.api.betas() else {
            return Ok(());
        };
        let unlisted = betas
            .flat_map(|value| value.split(','))
            .map(str::trim)
            .filter(|beta| !beta.is_empty() && !listed.contains(beta))
            .find(|beta| !self.accepts(&format!("anthropic-beta={beta}")));
        match unlisted {
            None => Ok(()),
            Some(beta) => {
                let beta = echo(beta);
                let why = format!(
                    "'{beta}' is not known to leave the cost as it is; leave it out, or have the operator list it: allow_fields = [\"anthropic-beta={beta}\"]"
                );
                Err(FieldError::unbounded("anthropic-beta", why))
            }
        }
    }

    /// Refuses a version of the API that is not known, where the header is sent on.
    pub fn check_versions<'v>(
        &self,
        versions: impl Iterator<Item = &'v str>,
    ) -> Result<(), FieldError> {
        let listed = self.api.versions();
        let mut unlisted = versions
            .map(str::trim)
            .filter(|version| listed.is_some_and(|listed| !listed.contains(version)))
            .filter(|version| !self.accepts(&format!("anthropic-version={version}")));
        match unlisted.next() {
            None => Ok(()),
            Some(version) => {
                let (known, version) = (listed.unwrap_or_default().join("' or '"), echo(version));
                let why = format!(
                    "'{version}' is not known to cost the same; write '{known}', or have the operator list it: allow_fields = [\"anthropic-version={version}\"]"
                );
                Err(FieldError::unbounded("anthropic-version", why))
            }
        }
    }

    /// Writes the maximum of calls of tools that the provider runs; most that they come to.
    pub fn pin_calls(&self, body: &mut Fields) -> Result<Calls, FieldError> {
        provided::pin(self.api, self.provided(), body)
    }

    /// The tools with a price, where a maximum of their calls is kept.
    fn provided(&self) -> &[Provided] {
        match provided::is_bounded(self.api, self.profile) {
            true => self.tools,
            false => &[],
        }
    }

    /// Writes the price class that was priced, where the upstream has several, and how closely images are looked at.
    pub fn pin(&self, body: &mut Fields) {
        if self.media.image.is_some_and(|image| image.pins_detail) {
            media::pin_detail(body);
        }
        if matches!(self.api, Api::Completions | Api::Embeddings) {
            return; // they have one class, and no field for it
        }
        let class = match self.profile {
            Profile::OpenAi => "default",
            Profile::Anthropic => "standard_only",
            Profile::Generic => return, // unknown servers refuse unknown fields
        };
        let is_asked = self
            .class
            .is_some_and(|class| class.aspect == Aspect::ServiceTier);
        if !is_asked && !self.accepts("service_tier") {
            body.insert("service_tier".to_owned(), json!(class));
        }
    }

    fn accepts(&self, path: &str) -> bool {
        let mut accepted = self.accepted.into_iter().flatten();
        accepted.any(|field| field == path)
    }

    fn field(&self, shapes: [Shape; 2], name: &str, path: &str, value: &Value) -> Option<Found> {
        let is_class = self
            .class
            .is_some_and(|class| class.aspect.as_str() == path);
        if value.is_null() || is_class || self.accepts(&without_places(path)) {
            return None;
        }
        let mut listed = shapes.into_iter().flatten();
        match listed.find(|(field, _)| *field == name) {
            Some((_, holds)) => self.value(holds, path, value),
            None => Some(unlisted(name, path)),
        }
    }

    fn value(&self, holds: &Holds, path: &str, value: &Value) -> Option<Found> {
        match (holds, value) {
            (Holds::Anything, _) => None,
            (Holds::Only(passes, why), value) => (!passes(value)).then(|| Found::new(path, *why)),
            (Holds::Object(shape), Value::Object(fields)) => self.object(shape, path, fields),
            (Holds::Parts(kinds) | Holds::Each(kinds), Value::Array(items)) => {
                let mut items = items.iter().enumerate();
                items.find_map(|(n, item)| self.kind(kinds, &format!("{path}[{n}]"), item))
            }
            (Holds::Parts(_), Value::String(_)) => None,
            (Holds::Object(_), _) => Some(Found::new(path, "it must be an object")),
            (Holds::Parts(_), _) => Some(Found::new(path, "it must be text or a list of parts")),
            (Holds::Each(_), _) => Some(Found::new(path, "it must be a list of objects")),
        }
    }

    fn object(&self, shape: Shape, path: &str, fields: &Fields) -> Option<Found> {
        fields.iter().find_map(|(name, value)| {
            let path = format!("{path}.{}", echo(name));
            self.field([shape, &[]], name, &path, value)
        })
    }

    fn kind(&self, kinds: &[Kind], path: &str, item: &Value) -> Option<Found> {
        let Some(fields) = item.as_object() else {
            return Some(Found::new(path, "it must be an object"));
        };
        let tag = match fields.get("type") {
            None | Some(Value::Null) => "",
            Some(Value::String(tag)) if !tag.is_empty() => tag,
            Some(_) => return Some(Found::new(path, "its type must be a string and not empty")),
        };
        let shape = kinds.iter().find(|kind| kind.is(tag));
        let shape = shape.map(|kind| kind.shape);
        let shape = shape.or_else(|| self.of_provided(tag, path));
        match shape.or_else(|| self.of_media(tag, path)) {
            Some(shape) => self.object(shape, path, fields),
            None if tag.is_empty() => Some(Found::new(path, "it has no type that is known here")),
            None => Some(Found::new(path, self.unknown_kind(tag, path))),
        }
    }
}

impl Allowed<'_> {
    /// What a tool that the provider runs may say, or what a conversation holds of its calls.
    fn of_provided(&self, tag: &str, path: &str) -> Option<Shape> {
        let tools = self.provided();
        if let Some(within) = path.strip_prefix("tools[") {
            // calls are counted and bounded of what stands in the list itself, not of what is inside another tool
            let is_listed = !within.contains('[');
            let is_priced = tools.iter().any(|tool| tool.kind == tag);
            return (is_listed && is_priced).then_some(provided::TOOL);
        }
        let mut history = provided::history(self.api).iter();
        let kind = history.find(|kind| !tools.is_empty() && kind.is(tag));
        kind.map(|kind| kind.shape)
    }
}

impl Allowed<'_> {
    /// What an image or a sound may say, where the model has a limit for one: within what is said, and what
    /// tools gave.
    fn of_media(&self, tag: &str, path: &str) -> Option<Shape> {
        let is_said = path.starts_with("messages[") || path.starts_with("input[");
        let is_part = path.contains(".content[") || path.contains(".output[");
        let image = self
            .api
            .image()
            .filter(|(kind, _)| *kind == tag && self.media.image.is_some());
        let has_audio = self.media.audio.is_some() && self.api.dialect() == Dialect::OpenAi;
        let audio = (tag == "input_audio" && has_audio).then_some(media::AUDIO);
        image
            .map(|(_, shape)| shape)
            .or(audio)
            .filter(|_| is_said && is_part)
    }
}

impl Allowed<'_> {
    /// What is said of an object of a kind that is not listed: what of the model's settings would let it through.
    fn unknown_kind(&self, tag: &str, path: &str) -> String {
        let is_image = self.api.image().is_some_and(|(kind, _)| kind == tag);
        let setting = match tag {
            _ if is_image && self.media.image.is_none() => "`image`",
            "input_audio" if self.media.audio.is_none() => "`audio`",
            _ if path.starts_with("tools[") => "a price for it under `tools`",
            _ => {
                let tag = echo(tag);
                return format!(
                    "objects of type '{tag}' have no configured maximum here; leave it out"
                );
            }
        };
        let tag = echo(tag);
        format!(
            "objects of type '{tag}' have no configured maximum here; leave it out, or have the operator set {setting} for the model"
        )
    }
}

impl Kind {
    fn is(&self, tag: &str) -> bool {
        match self.tag.strip_suffix('*') {
            Some(start) => tag.strip_prefix(start).is_some_and(is_version),
            None => self.tag == tag,
        }
    }
}

impl Found {
    pub(crate) fn new(param: &str, why: impl Into<String>) -> Self {
        let (param, why) = (param.to_owned(), why.into());
        Self { param, why }
    }
}

/// A name that a careless server takes for one that bounds.
fn variant(name: &str) -> Option<Found> {
    if BOUNDING.contains(&name) {
        return None;
    }
    static FOLDED: LazyLock<Vec<String>> =
        LazyLock::new(|| BOUNDING.iter().map(|name| folded(name)).collect());
    let folded = folded(name);
    let at = FOLDED.iter().position(|bounding| *bounding == folded)?;
    let bounding = BOUNDING[at];
    let why = format!("it may be taken for '{bounding}'; write it so");
    Some(Found::new(&echo(name), why))
}

fn folded(name: &str) -> String {
    fields::folded(name, ECHO_CHARS_MAX)
}

fn unlisted(name: &str, path: &str) -> Found {
    match Api::why(name) {
        Some(why) => Found::new(path, why),
        None => Found::new(
            &path.chars().take(ECHO_CHARS_MAX * 3).collect::<String>(),
            "it is not known to leave the cost as it is; leave it out, or have the operator list it in allow_fields",
        ),
    }
}

/// A path as the operator writes it: `messages[].name`.
pub(crate) fn without_places(path: &str) -> String {
    let mut within = false;
    let mut kept = String::with_capacity(path.len());
    for c in path.chars() {
        match c {
            '[' => within = true,
            ']' => within = false,
            _ if within => continue,
            _ => {}
        }
        kept.push(c);
    }
    kept
}

fn echo(text: &str) -> String {
    text.chars().take(ECHO_CHARS_MAX).collect()
}

#[cfg(test)]
mod tests;
