//! Every error answer of the neuron: status, type, code, in OpenAI's envelope.
//!
//! The text is for the client. What is for the log is logged where it happens.

use std::borrow::Cow;

use axum::{
    Json,
    http::{HeaderName, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use seatbelt_schemas::neuron::HEADER_UNUSED;
use serde_json::{Value, json};

use crate::shelf::NotUp;

/// Seconds after which a full neuron may be asked again.
const RETRY_AFTER_S: u64 = 1;
/// The same where a model is not loaded yet.
const LOAD_RETRY_AFTER_S: u64 = 5;

const INVALID: &str = "invalid_request_error";
const API: &str = "api_error";

#[derive(Debug)]
pub(super) struct ErrorAnswer {
    status: StatusCode,
    kind: &'static str,
    code: &'static str,
    message: String,
    param: Option<Cow<'static, str>>,
    retry_after_s: Option<u64>,
    /// Nothing was done for the request: its reservation may be used elsewhere.
    unused: bool,
}

impl ErrorAnswer {
    fn new(
        status: StatusCode,
        kind: &'static str,
        code: &'static str,
        message: impl Into<String>,
    ) -> Self {
        Self {
            status,
            kind,
            code,
            message: message.into(),
            param: None,
            retry_after_s: None,
            unused: false,
        }
    }

    /// The same, sure that nothing was done: its reservation may be used elsewhere.
    pub(super) fn unused(self) -> Self {
        Self {
            unused: true,
            ..self
        }
    }

    /// Whether nothing was done, for sure.
    #[cfg(test)]
    pub(super) fn is_unused(&self) -> bool {
        self.unused
    }

    fn bad(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, INVALID, code, message)
    }

    /// Not now, and nothing was done.
    pub(super) fn busy(message: impl Into<String>) -> Self {
        let retry_after_s = Some(RETRY_AFTER_S);
        Self {
            retry_after_s,
            unused: true,
            ..Self::new(
                StatusCode::SERVICE_UNAVAILABLE,
                API,
                "service_unavailable",
                message,
            )
        }
    }

    pub(super) fn invalid_body(message: impl Into<String>) -> Self {
        Self::bad("invalid_body", message)
    }

    pub(super) fn body_too_large(most: usize) -> Self {
        let message = format!("the request body is larger than {most} bytes");
        Self::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            INVALID,
            "body_too_large",
            message,
        )
    }

    pub(super) fn body_too_slow() -> Self {
        let message = "the request body took too long to arrive";
        Self::new(
            StatusCode::REQUEST_TIMEOUT,
            INVALID,
            "body_too_slow",
            message,
        )
    }

    pub(super) fn missing_model() -> Self {
        Self {
            param: Some("model".into()),
            ..Self::bad("missing_model_field", "you must provide a model parameter")
        }
    }

    pub(super) fn invalid_value(param: &'static str, wanted: &str) -> Self {
        Self {
            param: Some(param.into()),
            ..Self::bad("invalid_value", format!("{param} must be {wanted}"))
        }
    }

    pub(super) fn unsupported(
        param: impl Into<Cow<'static, str>>,
        message: impl Into<String>,
    ) -> Self {
        Self {
            param: Some(param.into()),
            ..Self::bad("unsupported_parameter", message)
        }
    }

    pub(super) fn invalid_header(name: &'static str, wanted: &str) -> Self {
        Self {
            param: Some(name.into()),
            ..Self::bad("invalid_header", format!("header {name} must be {wanted}"))
        }
    }

    pub(super) fn unsigned() -> Self {
        let message = "this neuron serves the gateways of its deployment: ask one of them, or set open = true in [neuron] for who should be served without";
        Self::new(
            StatusCode::UNAUTHORIZED,
            INVALID,
            "invalid_signature",
            message,
        )
    }

    pub(super) fn no_admin() -> Self {
        let message = "models are loaded and unloaded with the admin token of this neuron";
        Self::new(
            StatusCode::UNAUTHORIZED,
            INVALID,
            "invalid_admin_token",
            message,
        )
    }

    pub(super) fn other_secret() -> Self {
        let message = "the call is signed with another secret than this neuron's, or for another neuron: its log says what to do";
        Self::new(
            StatusCode::UNAUTHORIZED,
            INVALID,
            "invalid_signature",
            message,
        )
    }

    pub(super) fn other_body() -> Self {
        let message = "the body is not the one that was signed";
        Self::new(
            StatusCode::UNAUTHORIZED,
            INVALID,
            "invalid_signature",
            message,
        )
    }

    pub(super) fn served_before() -> Self {
        let message = "the reservation of this call was served already";
        Self::new(StatusCode::CONFLICT, INVALID, "reservation_used", message)
    }

    pub(super) fn not_running() -> Self {
        let message = "no request of this reservation runs here whose maximum may grow";
        Self::new(
            StatusCode::NOT_FOUND,
            INVALID,
            "reservation_not_running",
            message,
        )
    }

    pub(super) fn unknown_model(name: &str) -> Self {
        let name: String = name.chars().take(80).collect();
        let message = format!("the model {name:?} is not served here");
        Self {
            param: Some("model".into()),
            ..Self::new(StatusCode::NOT_FOUND, INVALID, "model_not_found", message)
        }
    }

    pub(super) fn model_failed(name: &str) -> Self {
        let name: String = name.chars().take(80).collect();
        Self::busy(format!(
            "the model {name:?} could not be loaded here: the neuron's log and /health/ready say why"
        ))
    }

    /// Its load takes longer than its request may wait.
    pub(super) fn model_loading(name: &str) -> Self {
        let message = format!("the model {name:?} is not loaded yet: try again");
        Self {
            retry_after_s: Some(LOAD_RETRY_AFTER_S),
            code: "model_loading",
            ..Self::busy(message)
        }
    }

    pub(super) fn model_busy(name: &str) -> Self {
        let message =
            format!("the model {name:?} has work, or is being loaded: try again when it has none");
        Self::new(StatusCode::CONFLICT, INVALID, "model_busy", message)
    }

    pub(super) fn unknown_recipe() -> Self {
        let message = "no model with a tokenizer of this name is served here";
        Self::new(StatusCode::NOT_FOUND, INVALID, "recipe_not_found", message)
    }

    pub(super) fn no_prompt(message: impl Into<String>) -> Self {
        Self {
            param: Some("messages".into()),
            ..Self::bad("invalid_prompt", message)
        }
    }

    pub(super) fn over_context(context: usize) -> Self {
        let message = format!(
            "the prompt leaves no room for output in this model's context of {context} tokens"
        );
        Self::bad("context_length_exceeded", message)
    }

    pub(super) fn over_reservation(most: usize, prompt: usize) -> Self {
        let message = format!("the prompt has {prompt} tokens, {most} were reserved");
        Self::bad("input_over_reservation", message)
    }

    pub(super) fn no_embeddings() -> Self {
        Self::bad(
            "unsupported_endpoint",
            "this model writes texts and gives no embeddings: ask for a model that does",
        )
    }

    pub(super) fn embeddings_alone(name: &str) -> Self {
        let message =
            format!("model {name} gives embeddings and writes no texts: ask for a model that does");
        Self::bad("unsupported_endpoint", message)
    }

    pub(super) fn text_too_long(context: usize) -> Self {
        let message = format!("a text has more than the {context} tokens that this model reads");
        Self::bad("context_length_exceeded", message)
    }

    pub(super) fn too_many_answers(most: usize) -> Self {
        let message =
            format!("this model runs and queues {most} answers at most: ask for fewer at once");
        Self::unsupported("n", message)
    }

    /// What a request is told that does not get its model.
    pub(super) fn not_up(name: &str, why: NotUp) -> Self {
        match why {
            NotUp::Closed(reason) => Self::closed(reason),
            NotUp::Crowded => Self::queue_full(),
            NotUp::NotInTime => Self::model_loading(name),
            NotUp::Gone => Self::unknown_model(name),
        }
    }

    pub(super) fn queue_full() -> Self {
        Self::busy("as many requests wait for this model as may: try again")
    }

    pub(super) fn closed(reason: &str) -> Self {
        Self::busy(reason)
    }

    pub(super) fn broken_off() -> Self {
        Self {
            unused: false,
            ..Self::busy("the neuron is stopping")
        }
    }

    /// Its shape led an answer to where it cannot be followed.
    pub(super) fn misshapen(words: &str) -> Self {
        Self::bad(
            "shape_not_followed",
            format!("{words}: say a simpler schema, what was written until then is charged"),
        )
    }

    pub(super) fn expired() -> Self {
        let message = "the request's deadline passed before it ended";
        Self::new(
            StatusCode::GATEWAY_TIMEOUT,
            API,
            "deadline_exceeded",
            message,
        )
    }

    pub(super) fn engine(message: impl Into<String>) -> Self {
        Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            API,
            "engine_error",
            message,
        )
    }

    pub(super) fn not_recorded() -> Self {
        let message = "what the request used could not be recorded, so its answer is withheld";
        Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            API,
            "usage_not_recorded",
            message,
        )
    }

    pub(super) fn no_route() -> Self {
        Self::new(
            StatusCode::NOT_FOUND,
            INVALID,
            "not_found",
            "there is no such route",
        )
    }

    pub(super) fn no_method() -> Self {
        Self::new(
            StatusCode::METHOD_NOT_ALLOWED,
            INVALID,
            "method_not_allowed",
            "this route does not take this method",
        )
    }

    /// The envelope.
    pub(super) fn json(&self) -> Value {
        json!({ "error": { "message": self.message, "type": self.kind, "code": self.code, "param": self.param } })
    }
}

impl IntoResponse for ErrorAnswer {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.json())).into_response();
        if let Some(seconds) = self.retry_after_s {
            response
                .headers_mut()
                .insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.unused {
            let name = HeaderName::from_static(HEADER_UNUSED);
            (response.headers_mut()).insert(name, HeaderValue::from_static("1"));
        }
        response
    }
}
