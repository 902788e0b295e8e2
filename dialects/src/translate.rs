//! From the API that a client asks in to the one that an upstream is asked in, and back.
//!
//! One file for each pair. A pair without one is refused: nothing is dropped in silence.

use crate::{
    api::Api,
    ask::Ask,
    face::Face,
    fields::{FieldError, Fields},
};

#[cfg(test)]
mod golden;
pub(crate) mod messages_chat;

use messages_chat::MessagesStream;

/// A pair of APIs with a way between them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Translation {
    /// A client of `/v1/messages`, an upstream of `/v1/chat/completions`.
    MessagesToChat,
}

/// The way between a client's API and an upstream's; none where all is passed on as it is.
pub fn between(client: Api, upstream: Api) -> Result<Option<Translation>, FieldError> {
    match (client, upstream) {
        (Api::Chat, Api::Chat) | (Api::Messages, Api::Messages) => Ok(None),
        (Api::Messages, Api::Chat) => Ok(Some(Translation::MessagesToChat)),
        (Api::Chat, Api::Messages) => Err(FieldError::invalid(
            "model",
            "is served in the Anthropic dialect alone: call POST /v1/messages",
        )),
    }
}

impl Translation {
    /// The body in the upstream's API, and what it asks for.
    pub fn request(self, body: &Fields) -> Result<(Fields, Ask), FieldError> {
        match self {
            Self::MessagesToChat => {
                let mut body = messages_chat::to_chat(body)?;
                let ask = Api::Chat.ask(&body)?;
                body.shift_remove("max_tokens"); // written again under the name that the model knows
                Ok((body, ask))
            }
        }
    }

    /// How the upstream's answer is shown: under this id and model; with the input tokens, where they
    /// are known before the end.
    pub fn face(self, id: String, model: String, input_tokens: u64) -> Face {
        match self {
            Self::MessagesToChat => Face::Messages(MessagesStream::new(id, model, input_tokens)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pair_has_one_way() {
        for api in [Api::Chat, Api::Messages] {
            assert_eq!(between(api, api).unwrap(), None);
        }
        let way = between(Api::Messages, Api::Chat).unwrap();
        assert_eq!(way, Some(Translation::MessagesToChat));
        let none = between(Api::Chat, Api::Messages).unwrap_err();
        assert_eq!(none.param, "model");
    }
}
