//! From the API that a client asks in to the one that an upstream is asked in, and back.
//!
//! One file for each pair, and a folder behind it for the parts of the way. Nothing is dropped in silence:
//! a field has a counterpart, is refused by name, or changes nothing (`docs/dialects.md`).

use serde_json::{Value, json};

use crate::{
    api::Api,
    ask::Ask,
    face::Face,
    fields::{FieldError, Fields},
};

mod calls;
mod chat_messages;
pub(crate) mod errors;
#[cfg(test)]
mod golden;
mod messages_chat;
mod names;
pub(crate) mod pieces;
#[cfg(test)]
mod pieces_of_streams;
pub(crate) mod refuse;
mod responses_chat;
mod responses_messages;
mod said;

pub use chat_messages::ChatStream;
pub(crate) use chat_messages::from_messages;
pub(crate) use messages_chat::from_chat;
pub use messages_chat::{MessagesStream, without_our_thoughts};
pub use responses_chat::{ResponsesStream, without_thoughts_of_others};
pub(crate) use responses_chat::{error_event, from_chat as response_from_chat};
pub use responses_messages::ResponsesOverMessages;

/// A pair of APIs with a way between them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Translation {
    /// A client of `/v1/messages`, an upstream of `/v1/chat/completions`.
    MessagesToChat,
    /// A client of `/v1/chat/completions`, an upstream of `/v1/messages`.
    ChatToMessages,
    /// A client of `/v1/responses`, an upstream of `/v1/chat/completions`.
    ResponsesToChat,
    /// A client of `/v1/responses`, an upstream of `/v1/messages`.
    ResponsesToMessages,
}

/// What an answer says again of the request that it is for.
#[derive(Debug, Clone, Default)]
pub struct Echo {
    /// As the client wrote them.
    pub(crate) fields: Fields,
    /// Its tools that are no plain functions to the client.
    pub(crate) tools: responses_chat::KnownTools,
}

/// Fields that a response says again.
const ECHOED: [&str; 9] = [
    "max_output_tokens",
    "metadata",
    "parallel_tool_calls",
    "reasoning",
    "temperature",
    "text",
    "tool_choice",
    "top_p",
    "user",
];

/// How a translated answer is shown.
#[derive(Debug, Clone, Default)]
pub struct Shown {
    /// The answer's id, in the manner of the client's dialect.
    pub(crate) id: String,
    /// What is unique of it.
    pub(crate) unique: String,
    /// The model's name as the client wrote it.
    pub(crate) model: String,
    pub(crate) created_s: u64,
    /// Known before the answer where the model's own tokenizer counted it.
    pub(crate) input_tokens: u64,
    /// The texts that the client has the output end at.
    pub(crate) stops: Vec<String>,
    /// The client wants the usage chunk of its stream.
    pub(crate) include_usage: bool,
    pub(crate) echo: Echo,
}

/// What an answer is shown under.
#[derive(Debug, Clone)]
pub struct Name {
    /// What is unique of the answer's id.
    pub id: String,
    /// The model's name as the client wrote it.
    pub model: String,
    /// When the answer began, in seconds since 1970.
    pub created_s: u64,
    /// Where they are known before the end; else 0.
    pub input_tokens: u64,
}

/// The way between a client's API and an upstream's; none where all is passed on as it is.
pub fn between(client: Api, upstream: Api) -> Result<Option<Translation>, FieldError> {
    match (client, upstream) {
        _ if client == upstream => Ok(None),
        (Api::Messages, Api::Chat) => Ok(Some(Translation::MessagesToChat)),
        (Api::Chat, Api::Messages) => Ok(Some(Translation::ChatToMessages)),
        (Api::Responses, Api::Chat) => Ok(Some(Translation::ResponsesToChat)),
        (Api::Responses, Api::Messages) => Ok(Some(Translation::ResponsesToMessages)),
        (client, _) => Err(FieldError::invalid(
            "model",
            format!(
                "names one that is not served over /v1/{}: use one whose server speaks it, see GET /v1/models",
                client.path().trim_start_matches("v1/")
            ),
        )),
    }
}

impl Translation {
    /// The body in the upstream's API, without the output maximum, what it asks for, and what its answer says
    /// again of it.
    pub fn request(self, body: &Fields) -> Result<(Fields, Ask, Echo), FieldError> {
        let client = self.asked(body)?;
        let echo = self.echo(body);
        let mut body = self.body(body)?;
        if self.upstream() == Api::Messages {
            body.insert("max_tokens".to_owned(), json!(1)); // it has to be there to be read
        }
        // what reaches the prompt is what is sent, and all else is what the client asked for
        let ask = Ask {
            max: client.max,
            include_usage: client.include_usage,
            end_user: client.end_user,
            ..self.upstream().ask(&body)?
        };
        body.shift_remove("max_tokens"); // written again under the name that the model knows
        Ok((body, ask, echo))
    }

    /// What the client asked for.
    fn asked(self, body: &Fields) -> Result<Ask, FieldError> {
        match self {
            Self::MessagesToChat => Api::Messages.ask(body),
            Self::ChatToMessages => Api::Chat.ask(body),
            Self::ResponsesToChat | Self::ResponsesToMessages => responses_chat::asked(body),
        }
    }

    fn echo(self, body: &Fields) -> Echo {
        match self {
            Self::MessagesToChat | Self::ChatToMessages => Echo::default(),
            Self::ResponsesToChat | Self::ResponsesToMessages => {
                let said = |name: &&str| Some(((*name).to_owned(), body.get(*name)?.clone()));
                Echo {
                    fields: ECHOED.iter().filter_map(said).collect(),
                    tools: responses_chat::known_tools(body),
                }
            }
        }
    }

    /// The body alone, as it is written in the upstream's API.
    fn body(self, body: &Fields) -> Result<Fields, FieldError> {
        match self {
            Self::MessagesToChat => messages_chat::to_chat(body),
            Self::ChatToMessages => chat_messages::to_messages(body),
            Self::ResponsesToChat => responses_chat::to_chat(body),
            Self::ResponsesToMessages => responses_messages::request(body),
        }
    }

    /// A field as the client wrote it that is named in the upstream's API.
    pub fn named(self, param: &str) -> String {
        let chat = match self {
            Self::MessagesToChat => names::OF_MESSAGES,
            Self::ResponsesToChat | Self::ResponsesToMessages => names::OF_RESPONSES,
            Self::ChatToMessages => names::OF_CHAT,
        };
        names::renamed(chat, param)
    }

    fn upstream(self) -> Api {
        match self {
            Self::MessagesToChat | Self::ResponsesToChat => Api::Chat,
            Self::ChatToMessages | Self::ResponsesToMessages => Api::Messages,
        }
    }

    /// How the upstream's answer is shown to whoever sent what is now `body`.
    pub fn face(self, name: Name, ask: &Ask, body: &Fields, echo: Echo) -> Face {
        let prefix = match self {
            Self::MessagesToChat => "msg_",
            Self::ChatToMessages => "chatcmpl-",
            Self::ResponsesToChat | Self::ResponsesToMessages => "resp_",
        };
        let stops = body.get("stop").and_then(Value::as_array);
        let stops = stops.into_iter().flatten().filter_map(Value::as_str);
        let shown = Shown {
            id: format!("{prefix}{}", name.id),
            unique: name.id,
            model: name.model,
            created_s: name.created_s,
            input_tokens: name.input_tokens,
            stops: stops.map(str::to_owned).collect(),
            include_usage: ask.include_usage,
            echo,
        };
        match self {
            Self::MessagesToChat => Face::Messages(MessagesStream::new(shown)),
            Self::ChatToMessages => Face::Chat(ChatStream::new(shown)),
            Self::ResponsesToChat => Face::Responses(Box::new(ResponsesStream::new(shown))),
            Self::ResponsesToMessages => {
                Face::ResponsesOverMessages(Box::new(ResponsesOverMessages::new(shown)))
            }
        }
    }
}

#[cfg(test)]
mod tests;
