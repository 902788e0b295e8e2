//! The calls in a stream of chat completions, told apart and put together from their pieces.

use crate::{
    odd::Unread,
    translate::{
        pieces::{Joint, Piece},
        said::CallPiece,
    },
};

/// Most calls of one answer.
const CALLS_MAX: usize = 4096;

/// A call of a tool, as far as it came.
#[derive(Debug, Default)]
pub(crate) struct Call {
    index: Option<u64>,
    /// Empty where none came.
    pub(crate) id: String,
    /// Empty until it came.
    pub(crate) name: String,
    joint: Joint,
    arguments: Braces,
}

impl Call {
    /// Whether a piece begins another call. One without a name goes on with this, whatever id it has.
    fn is_followed_by(&self, piece: &CallPiece) -> bool {
        let Some(name) = piece.name.as_ref().filter(|_| !self.name.is_empty()) else {
            return false;
        };
        let other_id = piece.id.is_some() && !self.id.is_empty();
        let more = piece.arguments.is_some() && self.arguments.are_closed();
        other_id || *name != self.name || more
    }
}

/// The calls of an answer, in the order in which they began.
#[derive(Debug, Default)]
pub(crate) struct Calls(Vec<Call>);

impl Calls {
    /// Takes a piece: the place of its call, and what of the arguments is known by it.
    pub(crate) fn add(&mut self, piece: CallPiece) -> Result<(usize, String), Unread> {
        let at = self.place(&piece)?;
        Ok(self.add_at(at, piece))
    }

    /// Takes a call that came whole: one of its own, whatever id it has.
    pub(crate) fn add_whole(&mut self, piece: CallPiece) -> Result<(usize, String), Unread> {
        let at = self.begin(piece.index)?;
        Ok(self.add_at(at, piece))
    }

    fn add_at(&mut self, at: usize, piece: CallPiece) -> (usize, String) {
        let call = &mut self.0[at];
        if call.id.is_empty() {
            call.id = piece.id.unwrap_or_default();
        }
        if call.name.is_empty() {
            call.name = piece.name.unwrap_or_default();
        }
        let arguments = piece.arguments.unwrap_or_else(|| Piece::of(""));
        let text = call.joint.join(&arguments);
        call.arguments.note(&text);
        (at, text)
    }

    /// Where a call stands: where its id does, else where its index does, else the last. Some servers give
    /// neither, or every call the same index: then a piece with a name of its own begins another call.
    fn place(&mut self, piece: &CallPiece) -> Result<usize, Unread> {
        let by_id = piece.id.as_ref().and_then(|id| {
            let same_id = |call: &Call| call.id == *id;
            self.0.iter().rposition(same_id)
        });
        let same_index = |call: &Call| piece.index.is_none() || call.index == piece.index;
        let by_index = || {
            let at = self.0.iter().rposition(same_index)?;
            (!self.0[at].is_followed_by(piece)).then_some(at)
        };
        match by_id.or_else(by_index) {
            Some(at) => Ok(at),
            None => self.begin(piece.index),
        }
    }

    fn begin(&mut self, index: Option<u64>) -> Result<usize, Unread> {
        if self.0.len() == CALLS_MAX {
            return Err(Unread);
        }
        self.0.push(Call {
            index,
            ..Call::default()
        });
        Ok(self.0.len() - 1)
    }

    /// The call in a place that was given out.
    pub(crate) fn get(&self, at: usize) -> &Call {
        &self.0[at]
    }

    /// What stands for the half of a character that no piece follows.
    pub(crate) fn rest(&mut self, at: usize) -> &'static str {
        self.0[at].joint.rest()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether one has no name: nobody could carry it out.
    pub(crate) fn any_nameless(&self) -> bool {
        self.0.iter().any(|call| call.name.is_empty())
    }
}

/// How far an object of JSON has come.
#[derive(Debug, Default)]
struct Braces {
    depth: u64,
    begun: bool,
    in_text: bool,
    escaped: bool,
}

impl Braces {
    fn note(&mut self, text: &str) {
        for byte in text.bytes() {
            if self.in_text {
                self.in_text = self.escaped || byte != b'"';
                self.escaped = !self.escaped && byte == b'\\';
                continue;
            }
            match byte {
                b'"' => self.in_text = true,
                b'{' | b'[' => {
                    self.begun = true;
                    self.depth += 1;
                }
                b'}' | b']' => self.depth = self.depth.saturating_sub(1),
                _ => {}
            }
        }
    }

    fn are_closed(&self) -> bool {
        self.begun && self.depth == 0
    }
}
