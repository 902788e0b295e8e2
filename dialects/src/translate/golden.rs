//! Every file of `golden/` in every API that there is a way to: `NAME.json` is what comes in, and
//! `NAME.TARGET.json` what goes out. A request that has no counterpart is shown as what is said of it.
//!
//! `cargo test -p seatbelt-dialects golden -- --ignored` writes what goes out; read the difference.

use std::{
    fs,
    path::{Path, PathBuf},
};

use bytes::{Bytes, BytesMut};
use seatbelt_schemas::usage::Usage;
use serde_json::{Value, json};

use super::{Name, Translation, between};
use crate::{
    api::Api,
    ask::Ask,
    face::Face,
    fields::Fields,
    sse::SseReader,
    told::{Part, Sent, StreamTold},
};

const APIS: [(Api, &str); 3] = [
    (Api::Chat, "chat"),
    (Api::Messages, "messages"),
    (Api::Responses, "responses"),
];
const KINDS: [&str; 3] = ["requests", "answers", "streams"];

/// One file in, and where what goes out of it is kept.
struct Case {
    from: Api,
    to: Api,
    kind: &'static str,
    input: PathBuf,
    output: PathBuf,
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("golden")
}

/// Whether a file is what comes in: its name has no target.
fn is_input(path: &Path) -> bool {
    let stem = path.file_stem().unwrap().to_str().unwrap();
    !stem.contains('.')
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else {
        return Vec::new();
    };
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (from, api) in APIS {
        for kind in KINDS {
            for input in files(&root().join(api).join(kind)) {
                for (to, target) in APIS {
                    // a request goes to an upstream, and its answer comes back from there
                    let (client, upstream) = match kind {
                        "requests" => (from, to),
                        _ => (to, from),
                    };
                    let is_way = matches!(between(client, upstream), Ok(Some(_)));
                    if is_input(&input) && is_way {
                        let extension = input.extension().unwrap().to_str().unwrap();
                        let output = input.with_extension(format!("{target}.{extension}"));
                        let input = input.clone();
                        cases.push(Case {
                            from,
                            to,
                            kind,
                            input,
                            output,
                        });
                    }
                }
            }
        }
    }
    cases
}

impl Case {
    fn way(&self) -> Translation {
        let (client, upstream) = match self.kind {
            "requests" => (self.from, self.to),
            _ => (self.to, self.from),
        };
        let way = between(client, upstream).unwrap();
        way.expect("a case has a way")
    }

    fn went_out(&self) -> String {
        let input = fs::read(&self.input).unwrap();
        match self.kind {
            "requests" => pretty(&self.request(&input)),
            "answers" => self.answer(input),
            _ => self.stream(&input),
        }
    }

    fn request(&self, input: &[u8]) -> Value {
        let body: Value = serde_json::from_slice(input).unwrap();
        match self.way().body(body.as_object().unwrap()) {
            Ok(body) => Value::Object(body),
            Err(error) => json!({"refused": {
                "fault": format!("{:?}", error.fault), "param": error.param, "problem": error.problem,
            }}),
        }
    }

    /// The face of an answer to a client that has it end at `END` and wants to be told the usage.
    fn face(&self) -> Face {
        let name = Name {
            id: "1".to_owned(),
            model: "m".to_owned(),
            created_s: 1,
            input_tokens: 10,
        };
        let ask = Ask {
            include_usage: true,
            ..Ask::default()
        };
        let sent = Fields::from_iter([("stop".to_owned(), json!(["END"]))]);
        let client = json!({
            "input": "hi", "temperature": 0.5, "metadata": {"k": "v"},
            "tools": [
                {"type": "custom", "name": "note"},
                {"type": "namespace", "name": "agents", "tools": [{"type": "function", "name": "ask"}]},
            ],
        });
        let echo = self.way().echo(client.as_object().unwrap());
        self.way().face(name, &ask, &sent, echo)
    }

    fn answer(&self, input: Vec<u8>) -> String {
        let shown = self
            .face()
            .whole(Bytes::from(input), None)
            .expect("an answer");
        String::from_utf8(shown.to_vec()).unwrap()
    }

    /// What a client sees, held back or not.
    fn stream(&self, input: &[u8]) -> String {
        let mut face = self.face();
        let sent = Sent {
            choices: 1,
            long_writes: false,
        };
        let mut told = StreamTold::new(self.from, sent);
        let (mut reader, mut held, mut out) =
            (SseReader::default(), BytesMut::new(), BytesMut::new());
        reader.push(input);
        let mut ended = false;
        while let Some(event) = reader.next_event().unwrap() {
            let part = told.note(&event);
            ended |= part == Part::End;
            face.event(&event, part, &mut held, &mut out).unwrap();
        }
        let usage: Usage = told.final_usage(ended).expect("a whole stream");
        out.extend_from_slice(&face.end(Some(usage), held));
        String::from_utf8(out.to_vec()).unwrap()
    }
}

fn pretty(value: &Value) -> String {
    serde_json::to_string_pretty(value).unwrap()
}

#[test]
fn every_golden_file_is_translated_as_it_says() {
    let cases = cases();
    assert!(cases.len() >= 24, "{} cases", cases.len());
    for case in &cases {
        let expected = fs::read_to_string(&case.output)
            .unwrap_or_else(|error| panic!("{}: {error}", case.output.display()));
        assert_eq!(
            case.went_out().trim(),
            expected.trim(),
            "{}",
            case.output.display()
        );
    }
}

#[test]
fn no_golden_file_stands_there_unread() {
    let outputs: Vec<PathBuf> = cases().into_iter().map(|case| case.output).collect();
    for (_, api) in APIS {
        for kind in KINDS {
            for file in files(&root().join(api).join(kind)) {
                let read = is_input(&file) || outputs.contains(&file);
                assert!(read, "{} belongs to no file", file.display());
            }
        }
    }
}

#[test]
#[ignore = "writes what goes out"]
fn write() {
    for case in cases() {
        let out = case.went_out();
        fs::write(&case.output, format!("{}\n", out.trim_end())).unwrap();
    }
}
