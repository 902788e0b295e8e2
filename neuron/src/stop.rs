//! Ends a text at a stop string, wherever the borders between tokens lie.
//!
//! Text that might be the beginning of a stop string is held back until it is decided. The stop
//! string itself is never let through.

/// What may be sent on after a piece of text came in.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Passed {
    /// Send this and go on.
    More(String),
    /// A stop string began after this: send it and end.
    Stopped(String),
}

/// Watches the text of one request.
#[derive(Debug, Default)]
pub(crate) struct StopWatch {
    stops: Vec<String>,
    held: String,
}

impl StopWatch {
    pub(crate) fn new(stops: Vec<String>) -> Self {
        Self {
            stops,
            held: String::new(),
        }
    }

    /// Takes the next piece of text.
    pub(crate) fn push(&mut self, text: &str) -> Passed {
        if self.stops.is_empty() {
            return Passed::More(text.to_owned());
        }
        self.held.push_str(text);
        if let Some(at) = self
            .stops
            .iter()
            .filter_map(|stop| self.held.find(stop.as_str()))
            .min()
        {
            self.held.truncate(at);
            return Passed::Stopped(std::mem::take(&mut self.held));
        }
        let undecided = self
            .stops
            .iter()
            .map(|stop| begun(&self.held, stop))
            .max()
            .unwrap_or(0);
        let keep = self.held.split_off(self.held.len() - undecided);
        Passed::More(std::mem::replace(&mut self.held, keep))
    }

    /// The text still held back when the request ends otherwise.
    pub(crate) fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

/// Bytes at the end of `text` that are a beginning of `stop`.
fn begun(text: &str, stop: &str) -> usize {
    let longest = text.len().min(stop.len().saturating_sub(1));
    (1..=longest)
        .rev()
        .find(|n| stop.is_char_boundary(*n) && text.ends_with(&stop[..*n]))
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[track_caller]
    fn check(stops: &[&str], pieces: &[&str], sent: &str, stopped: bool) {
        let mut watch = StopWatch::new(stops.iter().map(|stop| (*stop).to_owned()).collect());
        let mut out = String::new();
        for piece in pieces {
            match watch.push(piece) {
                Passed::More(text) => out.push_str(&text),
                Passed::Stopped(text) => {
                    out.push_str(&text);
                    assert_eq!((out.as_str(), true), (sent, stopped));
                    return;
                }
            }
        }
        out.push_str(&watch.finish());
        assert_eq!((out.as_str(), false), (sent, stopped));
    }

    #[test]
    fn a_stop_string_across_pieces_ends_the_text_before_it() {
        check(&["END"], &["abcE", "N", "Dxyz"], "abc", true);
    }

    #[test]
    fn a_beginning_that_leads_nowhere_is_sent_after_all() {
        check(&["END"], &["abcEN", "d", " more"], "abcENd more", false);
        check(&["END"], &["abcEN"], "abcEN", false);
    }

    #[test]
    fn the_earliest_of_several_wins() {
        check(&["yy", "b"], &["ab", "yy"], "a", true);
        check(&["bc", "abc"], &["xa", "b", "c"], "x", true);
    }

    #[test]
    fn repeats_inside_the_stop_string_do_not_hide_it() {
        check(&["aab"], &["a", "a", "a", "b"], "a", true);
    }

    #[test]
    fn characters_of_many_bytes_are_not_cut() {
        check(&["né"], &["an", "e"], "ane", false);
        check(&["né"], &["an", "é"], "a", true);
    }

    #[test]
    fn without_stop_strings_nothing_is_held() {
        let mut watch = StopWatch::new(Vec::new());
        assert_eq!(watch.push("E"), Passed::More("E".to_owned()));
    }

    proptest! {
        #[test]
        fn borders_between_pieces_never_matter(text in "[abc]{0,24}", stop in "[abc]{1,4}", cut in 1usize..5) {
            let pieces: Vec<String> = text.as_bytes().chunks(cut).map(|c| String::from_utf8_lossy(c).into_owned()).collect();
            let pieces: Vec<&str> = pieces.iter().map(String::as_str).collect();
            let expected = text.find(&stop).map_or(text.as_str(), |at| &text[..at]);
            check(&[&stop], &pieces, expected, text.contains(&stop));
        }
    }
}
