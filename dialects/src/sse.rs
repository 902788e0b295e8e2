//! Server-sent events, cut out of a byte stream and written.
//!
//! Events keep their bytes, so that what is not changed is passed on as it came. Chunk borders may
//! fall anywhere; line ends may be LF, CRLF or CR. One event has a stated size at most. Not here:
//! reconnecting, ids and retry times, which these APIs do not use.

use bytes::{Bytes, BytesMut};
use thiserror::Error;

/// Most bytes of one event.
pub const EVENT_BYTES_MAX: usize = 4 * 1024 * 1024;

/// An event larger than [`EVENT_BYTES_MAX`].
#[derive(Debug, Error)]
#[error("an event of the upstream's stream is larger than {EVENT_BYTES_MAX} bytes")]
pub struct EventTooLarge;

/// One event: its bytes, blank line included, and what they say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SseEvent {
    /// All its bytes.
    pub raw: Bytes,
    /// The event's name, where it has one.
    pub name: Option<String>,
    /// Its data lines, joined; a slice of `raw` where there is one line.
    pub data: Bytes,
}

impl SseEvent {
    fn parse(raw: Bytes) -> Self {
        let mut name = None;
        let mut data: Option<Bytes> = None;
        let mut joined = BytesMut::new();
        for line in lines(&raw) {
            let (field, value) = field(line);
            match field {
                b"event" => name = Some(String::from_utf8_lossy(value).into_owned()),
                b"data" => match &data {
                    None => data = Some(raw.slice_ref(value)),
                    Some(first) => {
                        if joined.is_empty() {
                            joined.extend_from_slice(first);
                        }
                        joined.extend_from_slice(b"\n");
                        joined.extend_from_slice(value);
                    }
                },
                _ => {}
            }
        }
        let data = match data {
            Some(one) if joined.is_empty() => one,
            Some(_) => joined.freeze(),
            None => Bytes::new(),
        };
        Self { raw, name, data }
    }

    /// With a blank line behind it, whether or not it had one: nothing can be glued to it.
    #[must_use]
    pub fn completed(self) -> Self {
        let raw = Bytes::from([self.raw.as_ref(), b"\n\n"].concat());
        Self { raw, ..self }
    }
}

fn lines(raw: &[u8]) -> impl Iterator<Item = &[u8]> {
    raw.split(|byte| matches!(byte, b'\n' | b'\r'))
        .filter(|line| !line.is_empty())
}

/// A line's field and value; comments have an empty field.
fn field(line: &[u8]) -> (&[u8], &[u8]) {
    let line = line.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(line);
    match line.iter().position(|byte| *byte == b':') {
        Some(colon) => {
            let value = &line[colon + 1..];
            (&line[..colon], value.strip_prefix(b" ").unwrap_or(value))
        }
        None => (line, b""),
    }
}

/// Cuts events out of chunks.
#[derive(Debug, Default)]
pub struct SseReader {
    buffer: BytesMut,
    /// Bytes of the buffer that hold no end of an event.
    scanned: usize,
    /// Where the line that is being scanned began.
    line: usize,
    /// No byte follows.
    closed: bool,
}

impl SseReader {
    /// Takes the next bytes, wherever they were cut.
    pub fn push(&mut self, chunk: &[u8]) {
        self.buffer.extend_from_slice(chunk);
    }

    /// No byte follows: a line feed is no longer waited for.
    pub fn close(&mut self) {
        self.closed = true;
    }

    /// The next whole event, if it has arrived.
    pub fn next_event(&mut self) -> Result<Option<SseEvent>, EventTooLarge> {
        while let Some(byte) = self.buffer.get(self.scanned) {
            let ends_line = match byte {
                b'\n' => 1,
                // whether a line feed belongs to it is not known before the next byte
                b'\r' => match self.buffer.get(self.scanned + 1) {
                    Some(b'\n') => 2,
                    Some(_) => 1,
                    None if self.closed => 1,
                    None => break,
                },
                _ => 0,
            };
            let blank = ends_line > 0 && self.line == self.scanned;
            self.scanned += ends_line.max(1);
            if ends_line > 0 {
                self.line = self.scanned;
            }
            if blank {
                return Ok(Some(self.cut()));
            }
        }
        if self.buffer.len() > EVENT_BYTES_MAX {
            return Err(EventTooLarge);
        }
        Ok(None)
    }

    /// What is left when the stream ends: an event whose blank line never came, and which may be cut, or
    /// nothing.
    pub fn last_event(&mut self) -> Option<SseEvent> {
        self.scanned = self.buffer.len();
        (self.scanned > 0).then(|| self.cut())
    }

    fn cut(&mut self) -> SseEvent {
        let raw = self.buffer.split_to(self.scanned).freeze();
        self.scanned = 0;
        self.line = 0;
        SseEvent::parse(raw)
    }
}

/// Writes an event of one data line.
pub fn write_event(out: &mut BytesMut, name: Option<&str>, data: &[u8]) {
    if let Some(name) = name {
        out.extend_from_slice(b"event: ");
        out.extend_from_slice(name.as_bytes());
        out.extend_from_slice(b"\n");
    }
    out.extend_from_slice(b"data: ");
    out.extend_from_slice(data);
    out.extend_from_slice(b"\n\n");
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(chunks: &[&[u8]]) -> Vec<SseEvent> {
        let mut reader = SseReader::default();
        let mut events = Vec::new();
        for chunk in chunks {
            reader.push(chunk);
            while let Some(event) = reader.next_event().unwrap() {
                events.push(event);
            }
        }
        reader.close();
        while let Some(event) = reader.next_event().unwrap() {
            events.push(event);
        }
        events.extend(reader.last_event());
        events
    }

    #[track_caller]
    fn check(stream: &str, expected: &[(Option<&str>, &str)]) {
        let events = read(&[stream.as_bytes()]);
        let found: Vec<_> = events
            .iter()
            .map(|event| {
                (
                    event.name.as_deref(),
                    std::str::from_utf8(&event.data).unwrap(),
                )
            })
            .collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn events_are_read_with_any_line_end() {
        for end in ["\n", "\r\n", "\r"] {
            let stream =
                "data: {\"a\":1}\n\nevent: error\ndata:x\n\ndata: [DONE]\n\n".replace('\n', end);
            check(
                &stream,
                &[(None, "{\"a\":1}"), (Some("error"), "x"), (None, "[DONE]")],
            );
        }
    }

    #[test]
    fn several_data_lines_are_one_text_and_comments_say_nothing() {
        check(
            ": ping\n\ndata: a\ndata: b\nid: 7\n\n",
            &[(None, ""), (None, "a\nb")],
        );
    }

    #[test]
    fn an_event_without_its_blank_line_is_still_read_at_the_end() {
        check("data: a\n\ndata: [DONE]", &[(None, "a"), (None, "[DONE]")]);
        check("\u{feff}data: a\n\n", &[(None, "a")]);
    }

    #[test]
    fn at_the_end_a_whole_event_is_told_apart_from_one_that_may_be_cut() {
        for (stream, is_whole) in [
            ("data: a\r\n\r", true),
            ("data: a\r\r", true),
            ("data: a\n\n", true),
            ("data: a\r", false),
            ("data: a\r\n", false),
            ("data: a\n", false),
            ("data: a", false),
        ] {
            let mut reader = SseReader::default();
            reader.push(stream.as_bytes());
            reader.close();
            assert_eq!(
                reader.next_event().unwrap().is_some(),
                is_whole,
                "{stream:?}"
            );
            let left = reader.last_event();
            assert_eq!(left.is_some(), !is_whole, "{stream:?}");
            if let Some(cut) = left {
                let again = read(&[&cut.clone().completed().raw, b"data: b\n\n"]);
                assert_eq!(again[0].data, cut.data, "{stream:?}");
                assert_eq!(again.last().unwrap().data, "b", "{stream:?}");
            }
        }
    }

    #[test]
    fn an_event_without_end_is_an_error_and_not_endless_memory() {
        let mut reader = SseReader::default();
        let chunk = vec![b'x'; 1024 * 1024];
        let failed = (0..=EVENT_BYTES_MAX / chunk.len()).any(|_| {
            reader.push(&chunk);
            reader.next_event().is_err()
        });
        assert!(failed);
    }

    proptest! {
        #[test]
        fn chunk_borders_change_nothing(
            lines in proptest::collection::vec("(data: [a-z\u{e9}]{0,5}|event: e|: c|)", 0..20),
            ends in proptest::collection::vec(proptest::sample::select(vec!["\n", "\r\n", "\r"]), 20),
            cuts in proptest::collection::vec(0..200usize, 0..20),
        ) {
            let stream: String = lines.iter().zip(&ends).flat_map(|(line, end)| [line.as_str(), end]).collect();
            let bytes = stream.as_bytes();
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(bytes.len())).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let chunks: Vec<&[u8]> = cuts.windows(2).map(|pair| &bytes[pair[0]..pair[1]]).collect();
            let cut_up = read(&chunks);
            prop_assert_eq!(&cut_up, &read(&[bytes]));
            let raw: Vec<u8> = cut_up.iter().flat_map(|event| event.raw.to_vec()).collect();
            prop_assert_eq!(raw, bytes);
        }
    }
}
