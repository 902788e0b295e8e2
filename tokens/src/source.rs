//! The text of a chat template, as Jinja here takes it.
//!
//! `{% generation %}` marks for training what the assistant wrote. It writes nothing itself, and Jinja
//! does not know it: it is read as a condition that holds.

/// What stands for a mark, between the signs of its tag.
const MARKS: [(&str, &str); 2] = [("generation", " if true "), ("endgeneration", " endif ")];

/// The template without marks for training.
pub(crate) fn without_marks(source: String) -> String {
    if !source.contains(MARKS[0].0) {
        return source;
    }
    let mut out = String::with_capacity(source.len());
    let mut rest = source.as_str();
    while let Some(at) = rest.find("{%") {
        let (before, tag) = rest.split_at(at);
        out.push_str(before);
        let end = tag.find("%}").map_or(tag.len(), |end| end + "%}".len());
        out.push_str(&replaced(&tag[..end]).unwrap_or_else(|| tag[..end].to_owned()));
        rest = &tag[end..];
    }
    out.push_str(rest);
    out
}

/// What a mark becomes, with its signs for white space; nothing for any other tag.
fn replaced(tag: &str) -> Option<String> {
    let inner = tag.strip_prefix("{%")?.strip_suffix("%}")?;
    let after = inner.trim_start_matches(['-', '+']);
    let left = &inner[..inner.len() - after.len()];
    let word = after.trim_end_matches(['-', '+']);
    let right = &after[word.len()..];
    let (_, stands) = MARKS.iter().find(|(mark, _)| *mark == word.trim())?;
    Some(format!("{{%{left}{stands}{right}%}}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_for_training_become_conditions_that_hold() {
        let source =
            "a {%- generation -%} {{ b }}{% endgeneration %} c {% if generation %}d{% endif %}";
        let expected = "a {%- if true -%} {{ b }}{% endif %} c {% if generation %}d{% endif %}";
        assert_eq!(without_marks(source.to_owned()), expected);
    }

    #[test]
    fn anything_else_stays_as_it_is() {
        for source in [
            "",
            "{%",
            "{%}",
            "{% for",
            "{{ x }}{%-%}",
            "é{%é%}",
            "{%- endfor -%}",
            "{% generation",
            "{%}generation{% é %}",
        ] {
            assert_eq!(without_marks(source.to_owned()), source);
        }
    }
}
