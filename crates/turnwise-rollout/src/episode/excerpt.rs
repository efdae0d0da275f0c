use turnwise_environment::Observation;

/// Cuts the middle out of long messages, so that the observation has about `limit` bytes.
///
/// Short messages stay whole; the long ones share the rest equally. A mark in the text says how many bytes are omitted.
pub(super) fn cut(observation: &mut Observation, limit: usize) {
    let mut lengths: Vec<usize> =
        observation.messages.iter().map(|one| one.content.len()).collect();
    if lengths.iter().sum::<usize>() <= limit {
        return;
    }
    lengths.sort_unstable();
    let most = level(&lengths, limit);
    for message in &mut observation.messages {
        if message.content.len() > most {
            message.content = excerpt(&message.content, most);
        }
    }
}

/// Returns the length to which these lengths, shortest first, are cut so that their sum is at most `limit`.
fn level(lengths: &[usize], limit: usize) -> usize {
    let mut left = limit;
    for (place, length) in lengths.iter().enumerate() {
        let share = left / (lengths.len() - place);
        if *length > share {
            return share;
        }
        left -= length;
    }
    limit
}

/// Returns the first and last `most / 2` bytes of a text, at character boundaries, with a mark between them.
fn excerpt(text: &str, most: usize) -> String {
    let mut head = most / 2;
    while !text.is_char_boundary(head) {
        head -= 1;
    }
    let mut tail = text.len() - most / 2;
    while !text.is_char_boundary(tail) {
        tail += 1;
    }
    format!("{}\n[... {} bytes omitted ...]\n{}", &text[..head], tail - head, &text[tail..])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use turnwise_environment::{Message, Observation};

    use super::cut;

    proptest! {
        // A huge observation is cut to a bounded prompt, and the prompt says so.
        #[test]
        fn a_cut_observation_fits_and_says_what_is_missing(
            texts in prop::collection::vec(".{0,300}", 0..6),
            limit in 0_usize..400,
        ) {
            let mut observation =
                Observation::new(texts.iter().map(|text| Message::user(text.as_str())).collect());
            cut(&mut observation, limit);
            let mut kept = 0;
            for (message, text) in observation.messages.iter().zip(&texts) {
                let Some((head, rest)) = message.content.split_once("\n[... ") else {
                    prop_assert_eq!(&message.content, text);
                    kept += text.len();
                    continue;
                };
                let (omitted, tail) =
                    rest.split_once(" bytes omitted ...]\n").expect("the mark is whole");
                prop_assert!(text.starts_with(head) && text.ends_with(tail));
                let omitted: usize = omitted.parse().expect("a number");
                prop_assert_eq!(head.len() + omitted + tail.len(), text.len());
                kept += head.len() + tail.len();
            }
            prop_assert!(kept <= limit);
        }
    }
}
