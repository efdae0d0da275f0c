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

/// Seeded hashes, another version of a dependency or another machine must not change what a checkpoint was made with.
#[test]
fn training_is_the_same_everywhere() {
    let tokenizer = train_tokenizer(texts(), 320).expect("trained");
    assert_eq!(tokenizer.fingerprint(), "e9a0046c33af4185b5eca8425f78c38b");
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
fn digits_stand_alone_and_words_are_merged() {
    let tokenizer = train_tokenizer(texts(), 400).expect("trained");
    assert_eq!(tokenizer.encode_plain("1234567890").len(), 10);
    assert_eq!(tokenizer.encode_plain(" lower").len(), 1);
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
}
