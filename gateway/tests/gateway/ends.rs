//! How streams end for their clients: with the end of their dialect, or with one of its errors, and never
//! in silence. Each row is what an upstream sends.

use serde_json::{Value, json};

use crate::{
    messages::{native, native_stream},
    support::{
        Script, Stack, chat_stream, hi, hi_stream, read_until, status_and_body, stream_text,
    },
};

const CHAT: &str = "/v1/chat/completions";
const MESSAGES: &str = "/v1/messages";
const HOLD: u64 = 38;

/// The events of a stream, as a client reads them: name and data.
#[track_caller]
fn events(text: &str) -> Vec<(Option<&str>, &str)> {
    let blocks = text.split("\n\n").filter(|block| !block.trim().is_empty());
    let read = |block| {
        let field = |name: &str| -> Vec<&str> {
            let lines = str::lines(block).filter_map(|line| line.strip_prefix(name));
            lines.collect()
        };
        let (names, data) = (field("event: "), field("data: "));
        assert!(
            names.len() <= 1 && data.len() == 1,
            "events are glued: {text}"
        );
        (names.first().copied(), data[0])
    };
    blocks.map(read).collect()
}

/// Whether the SDK of the dialect takes an event for an error.
fn is_error(path: &str, (name, data): (Option<&str>, &str)) -> bool {
    let Ok(data) = serde_json::from_str::<Value>(data) else {
        return data.contains("\\ud83d"); // what only this client's language can read
    };
    match path {
        MESSAGES => name == Some("error") && data["error"]["type"].is_string(),
        _ => data["error"]["message"].is_string() || data["error"].is_string(),
    }
}

/// Plays a stream and checks that it ends in one error of the dialect and that nothing is glued to it.
async fn ends_in_an_error(stack: &Stack, path: &str, stream: &str) -> String {
    stack
        .upstream
        .plays(Script::Stream(vec![stream.to_owned()]));
    let text = stream_text(stack.post(path, &hi_stream(20))).await;
    let events = events(&text);
    let errors = events.iter().filter(|event| is_error(path, **event));
    assert_eq!(errors.count(), 1, "{stream}\ncame as\n{text}");
    assert!(
        is_error(path, *events.last().unwrap()),
        "{stream}\ncame as\n{text}"
    );
    for end in ["[DONE]", "message_stop"] {
        assert!(!text.contains(end), "{stream}\ncame as\n{text}");
    }
    text
}

fn said(content: &str) -> String {
    format!("data: {{\"choices\":[{{\"index\":0,\"delta\":{{\"content\":\"{content}\"}}}}]}}\n\n")
}

#[tokio::test]
async fn an_event_that_is_cut_is_not_passed_on() {
    let (openai, anthropic) = (Stack::balance(1 << 20).await, native().await);
    let whole = said("b");
    for cut in [whole.len() - 1, whole.len() - 2, whole.len() - 9, 6, 3] {
        let stream = said("a") + &whole[..cut];
        let text = ends_in_an_error(&openai, CHAT, &stream).await;
        assert!(text.starts_with(&said("a")), "{text}");
        ends_in_an_error(&openai, MESSAGES, &stream).await;
    }
    let native = native_stream();
    for cut in [1, 2, 20, 30] {
        let stream = native[0].clone() + &native[1][..native[1].len() - cut];
        let text = ends_in_an_error(&anthropic, MESSAGES, &stream).await;
        assert!(text.starts_with(&native[0]), "{text}");
    }
    assert_eq!(openai.spent_once_idle().await, 10 * HOLD);
}

#[tokio::test]
async fn a_whole_end_without_its_blank_line_is_an_end() {
    let stack = Stack::balance(1000).await;
    let stream = chat_stream().concat();
    stack
        .upstream
        .plays(Script::Stream(vec![stream.trim_end().to_owned()]));
    let text = stream_text(stack.chat(&hi_stream(20))).await;
    assert_eq!(events(&text).last(), Some(&(None, "[DONE]")));
    assert!(text.ends_with("\n\n"), "{text:?}");
    assert_eq!(stack.spent_once_idle().await, 15);
}

#[tokio::test]
async fn a_message_without_its_end_ends_in_an_error_and_costs_what_was_told() {
    let stack = native().await;
    let stream = native_stream()[..3].concat();
    ends_in_an_error(&stack, MESSAGES, &stream).await;
    assert_eq!(stack.spent_once_idle().await, 15);
}

#[tokio::test]
async fn what_a_stream_tells_after_its_error_is_charged() {
    let stack = Stack::balance(1 << 20).await;
    let error = "data: {\"error\":{\"message\":\"busy\",\"code\":429}}\n\n".to_owned();
    let usage = |input: u64, output: u64| {
        format!(
            "data: {{\"choices\":[],\"usage\":{{\"prompt_tokens\":{input},\"completion_tokens\":{output}}}}}\n\n"
        )
    };
    let mut before = 0;
    for (pieces, charged) in [
        (
            vec![said("a") + &usage(3, 1), error.clone(), usage(3, 15)],
            18,
        ),
        (vec![error.clone() + &said("a"), usage(3, 15)], 18),
        (vec![error.clone()], 0),
    ] {
        stack.upstream.plays(Script::Stream(pieces.clone()));
        let text = stream_text(stack.chat(&hi_stream(20))).await;
        assert!(text.ends_with(&error), "nothing is seen after it: {text}");
        let spent = stack.spent_once_idle().await;
        assert_eq!(spent - before, charged, "{pieces:?}");
        before = spent;
    }
}

#[tokio::test]
async fn an_early_usage_chunk_holds_back_nothing_but_itself() {
    let stack = Stack::balance(1000).await;
    let usage = chat_stream().remove(3);
    let mut pieces = chat_stream();
    pieces.insert(0, usage);
    let (first, rest) = (pieces[..2].concat(), pieces[2..].concat());
    stack.upstream.plays(Script::Held(vec![first, rest]));
    let mut body = hi_stream(20);
    body["stream_options"] = json!({"include_usage": true});
    let mut response = stack.chat(&body).send().await.unwrap();
    let seen = read_until(&mut response, "hel").await;
    stack.upstream.go_on.notify_one();
    let text = seen + &read_until(&mut response, "[DONE]").await;
    assert_eq!(text.matches("prompt_tokens").count(), 2, "{text}");
    assert!(text.ends_with(&chat_stream()[3..].concat()), "{text}");
    assert_eq!(stack.spent_once_idle().await, 15);
}

#[tokio::test]
async fn an_error_that_says_nothing_is_none() {
    let stack = Stack::balance(1 << 20).await;
    for none in ["null", "false", "\"\"", "{}", "[]"] {
        let content = said("hel").replacen('{', &format!("{{\"error\":{none},"), 1);
        let mut pieces = chat_stream();
        pieces[0] = content.clone();
        for path in [CHAT, MESSAGES] {
            stack.upstream.plays(Script::Stream(pieces.clone()));
            let text = stream_text(stack.post(path, &hi_stream(20))).await;
            assert!(
                text.contains("hel") && text.contains("lo"),
                "{none}: {text}"
            );
            assert!(
                text.contains("[DONE]") || text.contains("message_stop"),
                "{none}: {text}"
            );
        }
    }
    assert_eq!(stack.spent_once_idle().await, 10 * 15);
}

#[tokio::test]
async fn every_error_is_one_of_the_clients_dialect() {
    let (openai, anthropic) = (Stack::balance(1 << 20).await, native().await);
    for error in [
        "data: {\"error\":{\"message\":\"boom\"}}\n\n",
        "data: {\"error\":\"boom\"}\n\n",
        "data: {\"error\":{\"message\":\"boom \\ud83d\"}}\n\n",
        "event: error\ndata: {\"message\":\"boom\"}\n\n",
        "event: error\ndata: {\"error\":\"\",\"message\":\"boom\"}\n\n",
        "event: error\ndata: {\"error\":{\"message\":\"boom\"}}\n\n",
        "event: error\ndata: \"boom\"\n\n",
        "event: error\ndata: boom at <html>\n\n",
        "event: error\ndata: boom\ndata: boom\n\n",
        "event: error\ndata: boom",
    ] {
        let stream = said("a")
            + error
            + if error.ends_with('\n') {
                "data: [DONE]\n\n"
            } else {
                ""
            };
        for path in [CHAT, MESSAGES] {
            let text = ends_in_an_error(&openai, path, &stream).await;
            assert!(text.contains("boom"), "{error}: {text}");
        }
    }
    let stop = &native_stream()[3];
    for error in [
        "event: error\ndata: {\"type\":\"error\",\"error\":{\"type\":\"overloaded_error\",\"message\":\"boom\"}}\n\n",
        "data: {\"type\":\"error\",\"error\":{\"type\":\"overloaded_error\",\"message\":\"boom\"}}\n\n",
        "event: error\ndata: {\"message\":\"boom\"}\n\n",
        "event: error\ndata: boom\n\n",
    ] {
        let stream = native_stream()[0].clone() + error + stop;
        let text = ends_in_an_error(&anthropic, MESSAGES, &stream).await;
        assert!(text.contains("boom"), "{error}: {text}");
    }
}

#[tokio::test]
async fn an_error_without_a_word_is_still_one() {
    let stack = Stack::balance(1 << 20).await;
    for path in [CHAT, MESSAGES] {
        ends_in_an_error(&stack, path, "event: error\n\ndata: [DONE]\n\n").await;
    }
}

#[tokio::test]
async fn an_odd_field_spoils_no_text_of_a_translated_stream() {
    let stack = Stack::balance(1 << 20).await;
    let choice = |fields: &str| format!("data: {{\"choices\":[{{\"index\":0,{fields}}}]}}\n\n");
    for odd in [
        choice(r#""delta":{"content":"text"},"finish_reason":7"#),
        choice(r#""delta":{"content":"text"},"finish_reason":{}"#),
        choice(r#""delta":{"content":"text"},"finish_reason":[1e400]"#),
        choice(r#""delta":{"content":"text"},"logprobs":{"content":[{"logprob":-1e400}]}"#),
        choice(r#""delta":{"content":"text","odd":1e400},"index":0"#),
        choice(r#""delta":{"content":"text"},"index":0"#),
        choice(r#""delta":{"content":"text","role":"a","role":"b"}"#),
        choice(r#""delta":{"content":[{"type":"text","text":"text","n":1e400}]}"#),
        choice(r#""delta":{"content":"text \ud83d"},"finish_reason":7"#),
        "data: {\"id\":1e400,\"id\":2,\"choices\":[{\"delta\":{\"content\":\"text\"}}]}\n\n".to_owned(),
        "data: {\"error\":null,\"choices\":[{\"delta\":{\"content\":\"text\"}}],\"error\":null}\n\n".to_owned(),
    ] {
        let mut pieces = chat_stream();
        pieces[1] = odd.clone();
        stack.upstream.plays(Script::Stream(pieces));
        let text = stream_text(stack.post(MESSAGES, &hi_stream(20))).await;
        assert!(text.contains("\"text\":\"text"), "{odd}: {text}");
        assert!(text.contains("message_stop"), "{odd}: {text}");
    }
}

#[tokio::test]
async fn what_cannot_be_translated_is_never_left_out_in_silence() {
    let stack = Stack::balance(1 << 20).await;
    for odd in [
        "data: {\"choices\":[{\"delta\":{\"content\":\"te\n\n",
        "data: text\n\n",
        "data: [1]\n\n",
        "data: {\"choices\":[\"text\"]}\n\n",
        "data: {\"choices\":{\"0\":{\"delta\":{\"content\":\"text\"}}}}\n\n",
        "data: {\"choices\":[{\"delta\":\"text\"}]}\n\n",
        "data: {\"choices\":[{\"delta\":{\"content\":7}}]}\n\n",
        "data: {\"choices\":[{\"delta\":{\"content\":{\"text\":\"text\"}}}]}\n\n",
    ] {
        let mut pieces = chat_stream();
        pieces[1] = odd.to_owned();
        let text = ends_in_an_error(&stack, MESSAGES, &pieces.concat()).await;
        assert!(text.contains("hel"), "{odd}: {text}");
    }
    assert_eq!(stack.spent_once_idle().await, 8 * HOLD);
}

#[tokio::test]
async fn what_is_no_content_is_left_out() {
    let stack = Stack::balance(1000).await;
    let mut pieces = chat_stream();
    for nothing in [
        ": ping\n\n",
        "data: \n\n",
        "data: {}\n\n",
        "data: {\"choices\":{}}\n\n",
        "data: null\n\n",
    ] {
        pieces.insert(1, nothing.to_owned());
    }
    stack.upstream.plays(Script::Stream(pieces));
    let text = stream_text(stack.post(MESSAGES, &hi_stream(20))).await;
    assert!(text.contains("message_stop"), "{text}");
    assert_eq!(stack.spent_once_idle().await, 15);
}

#[tokio::test]
async fn a_mark_of_the_end_that_is_cut_costs_what_was_reported_before_it() {
    let (openai, anthropic) = (Stack::balance(1000).await, native().await);
    let (chat, messages) = (chat_stream(), native_stream());
    let mut times = 0;
    for cut in ["data: [DONE", "data: [D", "data:", "d"] {
        let stream = chat[..4].concat() + cut;
        openai.upstream.plays(Script::Stream(vec![stream]));
        let text = stream_text(openai.chat(&hi_stream(20))).await;
        assert!(!text.contains("error") && !text.contains("[D"), "{text}");
        times += 1;
        assert_eq!(openai.spent_once_idle().await, times * 15, "{cut}");
    }
    let (last, before) = messages.split_last().unwrap();
    for (times, cut) in [3, 12, 30].into_iter().enumerate() {
        let stream = before.concat() + &last[..last.len() - cut];
        ends_in_an_error(&anthropic, MESSAGES, &stream).await;
        let spent = anthropic.spent_once_idle().await;
        assert_eq!(spent, (times as u64 + 1) * 15, "{cut}");
    }
}

#[tokio::test]
async fn what_is_cut_and_tells_of_usage_or_of_an_error_is_no_mark_of_the_end() {
    let stack = Stack::balance(1000).await;
    let report = r#"data: {"choices":[],"usage":{"prompt_tokens":10,"completion_to"#;
    for (times, cut) in [report, "event: error\ndata: {\"mess"]
        .into_iter()
        .enumerate()
    {
        let stream = chat_stream()[..4].concat() + cut;
        ends_in_an_error(&stack, CHAT, &stream).await;
        assert_eq!(
            stack.spent_once_idle().await,
            (times as u64 + 1) * HOLD,
            "{cut}"
        );
    }
}

#[tokio::test]
async fn odd_calls_of_tools_spoil_no_text_beside_them() {
    let stack = Stack::balance(1 << 20).await;
    for odd in [
        "7",
        "[7]",
        "{\"function\":{\"arguments\":7}}",
        "[{\"function\":{\"arguments\":7}}]",
    ] {
        let mut pieces = chat_stream();
        pieces[1] = format!(
            "data: {{\"choices\":[{{\"delta\":{{\"content\":\"text\",\"tool_calls\":{odd}}}}}]}}\n\n"
        );
        let text = ends_in_an_error(&stack, MESSAGES, &pieces.concat()).await;
        assert!(text.contains("\"text\":\"text\""), "{odd}: {text}");
    }
}

#[tokio::test]
async fn a_translation_of_what_tells_no_usage_shows_what_is_charged() {
    let stack = Stack::balance(1000).await;
    let mut pieces = chat_stream();
    pieces.remove(3);
    stack.upstream.plays(Script::Stream(pieces));
    let text = stream_text(stack.post(MESSAGES, &hi_stream(20))).await;
    let told = events(&text)
        .into_iter()
        .find(|(name, _)| *name == Some("message_delta"));
    let told: Value = serde_json::from_str(told.unwrap().1).unwrap();
    let shown = |told: &Value| {
        let tokens = |name: &str| told["usage"][name].as_u64().unwrap();
        tokens("input_tokens") + tokens("output_tokens")
    };
    assert_eq!(shown(&told), HOLD);
    let answer = json!({"choices": [{"message": {"content": "hi"}, "finish_reason": "stop"}]});
    stack
        .upstream
        .plays(Script::Whole(200, "application/json", answer.to_string()));
    let (_, told) = status_and_body(stack.post(MESSAGES, &hi(20))).await;
    assert_eq!(shown(&told), HOLD);
    assert_eq!(stack.spent_once_idle().await, 2 * HOLD);
}
