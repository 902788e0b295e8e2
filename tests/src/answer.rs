//! An HTTP answer, read whole, with what the tests ask of it.

use reqwest::{StatusCode, header::HeaderMap};
use serde_json::Value;

#[derive(Debug, Clone)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: String,
}

impl Answer {
    /// Reads an answer to its end.
    pub async fn read(response: reqwest::Response) -> Result<Self, reqwest::Error> {
        let status = response.status();
        let headers = response.headers().clone();
        let body = response.text().await?;
        Ok(Self {
            status,
            headers,
            body,
        })
    }

    /// The body as JSON; fails the test where it is none.
    #[track_caller]
    pub fn json(&self) -> Value {
        let parsed = serde_json::from_str(&self.body);
        parsed.unwrap_or_else(|error| panic!("{error}: not JSON: {self:?}"))
    }

    /// One header as text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// Whether it is a success.
    pub fn is_ok(&self) -> bool {
        self.status == StatusCode::OK
    }

    /// Checks that this is an enveloped OpenAI error of the given status, type and code.
    #[track_caller]
    pub fn expect_error(&self, status: u16, kind: &str, code: &str) -> Value {
        assert_eq!(self.status.as_u16(), status, "{self:?}");
        let error = self.json()["error"].clone();
        assert_eq!(error["type"], kind, "{self:?}");
        assert_eq!(error["code"], code, "{self:?}");
        let message = error["message"].as_str();
        assert!(message.is_some_and(|text| !text.is_empty()), "{self:?}");
        error
    }
}
