//! Templates with the moment of training.

use crate::jinja::formatted;

const NAME: &str = "strftime_now(";
const START: &str = "{#- Trained at the moment ";
const AFTER_TIME: &str = ", which this answers in the place of today. -#}\n";
const END: &str = "{%- endmacro %}\n";

/// Returns a template that writes a fixed moment wherever `template` asks for the time, so that a model trained with
/// one date gets the same date from programs whose `strftime_now` is today's.
///
/// Returns `None` for a template that does not ask for the time or that computes the format, and for an invalid `time`.
///
/// ```
/// use turnwise_chat::{with_moment, without_moment};
///
/// let own = "{{- strftime_now('%d %b %Y') -}}";
/// let saved = with_moment(own, "2026-01-31").expect("it asks for the time");
/// assert!(saved.contains("31 Jan 2026"));
/// assert_eq!(without_moment(&saved), own);
/// assert_eq!(with_moment("{{- bos_token -}}", "2026-01-31"), None);
/// ```
#[must_use]
pub fn with_moment(template: &str, time: &str) -> Option<String> {
    let mut answers = serde_json::Map::new();
    for asked in template.split(NAME).skip(1) {
        let asked = asked.trim_start();
        let quote = asked.chars().next().filter(|quote| matches!(quote, '\'' | '"'))?;
        let (format, rest) = asked[1..].split_once(quote)?;
        if format.contains('\\') || !rest.trim_start().starts_with(')') {
            return None;
        }
        answers.insert(format.to_owned(), formatted(time, format)?.into());
    }
    if answers.is_empty() {
        return None;
    }
    let answers = serde_json::Value::Object(answers);
    Some(format!(
        "{START}{time}{AFTER_TIME}{{%- set moment_of_training = {answers} -%}}\n\
         {{%- macro strftime_now(format) -%}}{{{{- moment_of_training[format] -}}}}{END}{template}"
    ))
}

/// Returns the original template of [`with_moment`], and any other text unchanged.
#[must_use]
pub fn without_moment(template: &str) -> &str {
    let original = || {
        let (time, rest) = template.strip_prefix(START)?.split_once(AFTER_TIME)?;
        let (_, original) = rest.split_once(END)?;
        // The text must be exactly what `with_moment` writes.
        (with_moment(original, time)? == template).then_some(original)
    };
    original().unwrap_or(template)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_format_has_its_answer() {
        let own = "{%- if strftime_now is defined %}{{ strftime_now(\"%Y\") + strftime_now( '%d %b' ) }}{% endif %}";
        let saved = with_moment(own, "2026-01-31T14:30:00").unwrap();
        assert!(saved.contains(r#"{"%Y":"2026","%d %b":"31 Jan"}"#), "{saved}");
        assert!(saved.ends_with(own));
        assert_eq!(without_moment(&saved), own);
    }

    #[test]
    fn what_cannot_be_known_is_left_as_it_is() {
        for own in [
            "{{ bos_token }}",
            "{{ strftime_now(format) }}",
            "{{ strftime_now('%d' + x) }}",
            "{{ strftime_now('%d",
            "{% if strftime_now is defined %}{% endif %}",
        ] {
            assert_eq!(with_moment(own, "2026-01-31"), None, "{own}");
        }
        assert_eq!(with_moment("{{ strftime_now('%d') }}", "tomorrow"), None);
    }

    #[test]
    fn a_program_that_only_begins_alike_is_read_whole() {
        let saved = with_moment("{{ strftime_now('%d') }}", "2026-01-31").unwrap();
        for other in
            [saved.replace("31\"}", "32\"}"), saved.replace("{%- set", "{{ evil }}{%- set")]
        {
            assert_ne!(other, saved);
            assert_eq!(without_moment(&other), other);
        }
    }
}
