use proptest::prelude::*;
use turnwise_chat::{ChatError, MIN_IDS, train_tokenizer};

fn texts() -> Vec<String> {
    (0..60)
        .map(|n| format!("Guess {n}: aaaa aaa lower, higher or 日本 <tool_call>equal?"))
        .collect()
}

#[test]
fn the_order_of_the_texts_does_not_matter() {
    let forwards = train_tokenizer(texts(), 320).expect("trained");
    let backwards = train_tokenizer(texts().into_iter().rev(), 320).expect("trained");
    assert_eq!(forwards.fingerprint(), backwards.fingerprint());
}

/// The result does not depend on seeded hashes, versions of dependencies or the machine.
#[test]
fn training_is_the_same_everywhere() {
    let tokenizer = train_tokenizer(texts(), 320).expect("trained");
    assert_eq!(tokenizer.fingerprint(), "cf40ea4b809d823fc71c0d22177445ca");
}

#[test]
fn the_vocabulary_is_as_large_as_asked_where_the_texts_allow() {
    assert_eq!(train_tokenizer(texts(), MIN_IDS).expect("trained").n_ids(), MIN_IDS);
    assert_eq!(train_tokenizer(texts(), 280).expect("trained").n_ids(), 280);
    assert_eq!(train_tokenizer(Vec::new(), 4000).expect("trained").n_ids(), MIN_IDS);
    let error = train_tokenizer(texts(), MIN_IDS - 1).expect_err("too few");
    assert!(matches!(error, ChatError::TooFewIds { .. }), "{error}");
}

#[test]
fn a_number_becomes_one_token_wherever_it_stands_and_words_are_merged() {
    let often = (0..3).flat_map(|_| texts());
    let tokenizer = train_tokenizer(often, 400).expect("trained");
    assert_eq!(tokenizer.encode_plain(" lower").len(), 1);
    for n in 0..60 {
        let number = tokenizer.encode_plain(&n.to_string());
        assert_eq!(number.len(), 1, "{n}");
        for (before, after) in [("", " "), ("Guess ", ": "), ("1-", ""), ("-", "."), ("a", "b")] {
            let ids = tokenizer.encode_plain(&format!("{before}{n}{after}"));
            assert_eq!(ids[tokenizer.encode_plain(before).len()], number[0], "{before}{n}{after}");
        }
    }
    let rare = tokenizer.encode_plain("77");
    assert_eq!(rare, tokenizer.encode_plain("7").repeat(2), "77 is not in the texts");
}

#[test]
fn a_large_vocabulary_is_quick() {
    let words = (0..8000_u32).map(|n| format!("word{} ", n.wrapping_mul(2_654_435_761)));
    let letters = words.map(|word| word.replace(|c: char| c.is_ascii_digit(), "ab") + &word);
    assert!(train_tokenizer(letters, 2000).expect("trained").n_ids() <= 2000);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn whatever_it_was_trained_on_text_comes_back(
        texts in prop::collection::vec(any::<String>(), 0..6),
        n_more in 0..60_usize,
        text in any::<String>(),
    ) {
        let tokenizer = train_tokenizer(texts.clone(), MIN_IDS + n_more).expect("trained");
        for text in texts.iter().chain([&text]) {
            prop_assert_eq!(&tokenizer.decode(&tokenizer.encode_plain(text)), text);
        }
    }

    #[test]
    fn a_run_of_digits_is_spelt_the_same_wherever_it_stands(
        number in "[0-9]{1,6}",
        before in any::<String>(),
        after in any::<String>(),
        n_more in 0..120_usize,
    ) {
        let tokenizer = train_tokenizer(texts(), MIN_IDS + n_more).expect("trained");
        let before = before.trim_end_matches(char::is_numeric);
        let after = after.trim_start_matches(char::is_numeric);
        let spelt = [before, &number, after].map(|part| tokenizer.encode_plain(part)).concat();
        prop_assert_eq!(tokenizer.encode_plain(&format!("{before}{number}{after}")), spelt);
    }
}
