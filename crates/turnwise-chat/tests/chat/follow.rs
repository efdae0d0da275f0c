//! Where a template rewrites history, the kept parts of a sampled turn have their sampled tokens.

use std::sync::{Arc, LazyLock};

use proptest::prelude::*;
use serde_json::Value;
use turnwise_chat::{
    CallForm, ChatMl, ChatMlSettings, Llama3Settings, TemplateRenderer, TemplateSettings, Thinking,
    Tokenizer, Trust,
};
use turnwise_environment::Message;
use turnwise_rollout::{Bridged, EndedTurn, Renderer, Said};
use turnwise_trajectory::{StopReason, TokenId};

use crate::support::{fixture, ids_of, llama_tokenizer, trained};

struct Bundled {
    name: String,
    tokenizer: Arc<Tokenizer>,
    renderer: Box<dyn Renderer>,
}

fn template(
    name: &str,
    template: &str,
    tokenizer: Arc<Tokenizer>,
    mut settings: TemplateSettings,
) -> Bundled {
    settings.thinking = Thinking::Follow;
    let renderer = TemplateRenderer::new(tokenizer.clone(), template, &Trust::Any, settings);
    let renderer = Box::new(renderer.unwrap_or_else(|error| panic!("{name}: {error}")));
    Bundled { name: name.to_owned(), tokenizer, renderer }
}

/// Every bundled template, with its thinking followed.
static BUNDLED: LazyLock<Vec<Bundled>> = LazyLock::new(|| {
    let settings = ChatMlSettings { thinking: Thinking::Follow, ..ChatMlSettings::default() };
    let by_hand = ChatMl::new(trained(), settings).expect("it has the markers");
    let llama = turnwise_chat::Llama3::new(llama_tokenizer(), Llama3Settings::default());
    let llama = llama.expect("it has the markers");
    let of_llama = || {
        let mut settings = TemplateSettings {
            stop: vec!["<|eot_id|>".to_owned()],
            calls: CallForm::Llama3,
            ..TemplateSettings::default()
        };
        settings.arguments.insert("bos_token".to_owned(), "<|begin_of_text|>".into());
        settings
    };
    let usual = TemplateSettings::default;
    let mut all = vec![
        template("qwen3", include_str!("jinja/qwen3.jinja"), trained(), usual()),
        template(
            "qwen3 of another tokenizer",
            include_str!("jinja/qwen3.jinja"),
            fixture(),
            usual(),
        ),
        template("plain", include_str!("../../src/plain.jinja"), trained(), usual()),
        template("saved ChatML", &by_hand.template(), trained(), usual()),
        template("saved Llama 3", &llama.template(), llama_tokenizer(), of_llama()),
        template("llama31", include_str!("jinja/llama31.jinja"), llama_tokenizer(), of_llama()),
        Bundled { name: "ChatML".to_owned(), tokenizer: trained(), renderer: Box::new(by_hand) },
        Bundled {
            name: "Llama 3".to_owned(),
            tokenizer: llama_tokenizer(),
            renderer: Box::new(llama),
        },
    ];
    let cases: Value = serde_json::from_str(include_str!("data/cases.json")).expect("JSON");
    let more: Value = serde_json::from_str(include_str!("data/neighbours.json")).expect("JSON");
    for case in [cases, more].iter().flat_map(|list| list.as_array().expect("a list")) {
        let Some(text) = case["template"].as_str() else { continue };
        let mut settings = case["settings"].clone();
        settings.as_object_mut().expect("settings").remove("enable_thinking");
        let settings = serde_json::from_value(settings).expect("settings");
        all.push(template(case["id"].as_str().expect("an id"), text, fixture(), settings));
    }
    all
});

/// Texts that a policy may sample: thoughts of every shape, blanks, calls, names of control tokens.
fn sampled_text() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        4 => prop::sample::select(
            &[
                "<think>", "</think>", "<think>\n", "\n</think>\n\n", "<think></think>", "<think>\n\n</think>\n\n",
                "<thi", "nk>", "</", "<tool_call>\n{\"name\":\"f\",  \"arguments\":{\"a\":7}}\n</tool_call>",
                "<|im_start|>", "<|im_start|>assistant\n", "<|endoftext|", "</tool_call>", "<tool_response>",
                "<|start_header_id|>", "<|python_tag|>", "{\"name\": \"f\", \"parameters\": {\"a\": 7}}",
            ][..]
        ).prop_map(str::to_owned),
        2 => prop::sample::select(&["\n", " ", "\n\n", "\t", " \n", "\u{a0}", "é", "日", "😀"][..]).prop_map(str::to_owned),
        2 => "[ -~]{0,6}",
    ];
    prop::collection::vec(piece, 0..7).prop_map(|pieces| pieces.concat())
}

/// Returns the tokens of a text as a policy may sample it: some pieces as one token each, others letter by letter.
fn spelled(tokenizer: &Tokenizer, text: &str, cuts: &[prop::sample::Index]) -> Vec<TokenId> {
    let mut places: Vec<usize> =
        cuts.iter().map(|cut| text.floor_char_boundary(cut.index(text.len() + 1))).collect();
    places.extend([0, text.len()]);
    places.sort_unstable();
    let parts = places.windows(2).enumerate();
    let ids = parts.flat_map(|(n, ends)| {
        let part = &text[ends[0]..ends[1]];
        if n % 2 == 0 { tokenizer.encode_with_markers(part) } else { tokenizer.encode_plain(part) }
    });
    ids.collect()
}

/// Returns the tokens of a message in the whole conversation.
fn tokens_of(
    bundled: &Bundled,
    turn: &Message,
    drawn: &[TokenId],
    new: &Message,
) -> Option<(Vec<TokenId>, Vec<TokenId>)> {
    let question = Message::user("3 + 5?");
    let said = [Said::new(&question), Said { message: turn, drawn: Some(drawn) }, Said::new(new)];
    let rendered = bundled.renderer.render(&said, &[]).ok()?;
    let mut message = Vec::new();
    rendered.messages[1].iter().for_each(|span| span.extend_ids(&mut message));
    Some((message, ids_of(&rendered)))
}

/// Returns the template's text around a turn.
fn frame(bundled: &Bundled, close: TokenId, new: &Message) -> Option<(String, String)> {
    let mut ids = bundled.tokenizer.encode_plain("QQQ");
    ids.push(close);
    let turn = bundled.renderer.parse(&ids, &[]).to_message();
    let (message, _) = tokens_of(bundled, &turn, &ids, new)?;
    let text = bundled.renderer.text(&message);
    let (before, after) = text.split_once("QQQ")?;
    Some((before.trim_end().to_owned(), after.trim_start().to_owned()))
}

fn squash(text: &str) -> String {
    text.chars().filter(|c| !c.is_whitespace()).collect()
}

fn holds(ids: &[TokenId], part: &[TokenId]) -> bool {
    part.is_empty() || ids.windows(part.len()).any(|window| window == part)
}

/// Returns the tokens at the end of a turn with this text, without blanks and without a token that crosses the start.
fn end_of<'a>(tokenizer: &Tokenizer, turn: &'a [TokenId], text: &str) -> Option<&'a [TokenId]> {
    let wanted = squash(text);
    let end = |n: usize| squash(&tokenizer.decode(&turn[n..]));
    let ends: Vec<String> = (0..=turn.len()).map(end).collect();
    let longest = ends.iter().find(|end| wanted.ends_with(end.as_str()))?;
    let n = ends.iter().rposition(|end| end == longest)?;
    Some(&turn[n..])
}

proptest! {
    #![proptest_config(ProptestConfig { cases: ProptestConfig::default().cases / 4, ..ProptestConfig::default() })]

    #[test]
    fn what_a_template_keeps_of_a_turn_is_as_it_was_sampled(
        text in sampled_text(),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..3),
        is_closed in any::<bool>(),
        answers_tool in any::<bool>(),
    ) {
        let new = if answers_tool { Message::tool("call_0", "12") } else { Message::user("And 3?") };
        for bundled in BUNDLED.iter() {
            let (tokenizer, renderer) = (&bundled.tokenizer, &bundled.renderer);
            let close = renderer.stop_tokens()[0];
            let opened = renderer.open(&"3 + 5?".into(), &[]);
            let Ok(opened) = opened else { continue };
            // The text that the template forces at the start of a turn is part of it.
            let turn = [opened.prefill.clone(), spelled(tokenizer, &text, &cuts)].concat();
            let turn = turn.split(|id| renderer.stop_tokens().contains(id)).next().unwrap_or_default();
            let mut drawn = turn.to_vec();
            drawn.extend(is_closed.then_some(close));
            let message = renderer.parse(&drawn, &[]).to_message();
            let Some((written, whole)) = tokens_of(bundled, &message, &drawn, &new) else { continue };

            // Either the existing tokens stay, or the whole conversation is rendered.
            let question = Message::user("3 + 5?");
            let history = [Said::new(&question), Said { message: &message, drawn: Some(&drawn) }];
            let stop = if is_closed { StopReason::EndOfTurn } else { StopReason::MaxTokens };
            let bridged = renderer.go_on(EndedTurn { ids: &drawn, stop }, &history, std::slice::from_ref(&new), &[]);
            if let Bridged::Append(delta) = bridged.expect("it renders") {
                let mut held = ids_of(&opened);
                held.extend(&drawn[opened.prefill.len()..]);
                held.extend(ids_of(&delta));
                prop_assert_eq!(renderer.text(&held), renderer.text(&whole), "{}", bundled.name);
                prop_assert!(holds(&whole, turn), "{}", bundled.name);
            }

            // Every suffix of the turn that the template writes has its sampled tokens.
            let Some((before, after)) = frame(bundled, close, &new) else { continue };
            let said = renderer.text(&written);
            let said = said.trim_start().strip_prefix(before.trim_start()).and_then(|said| said.trim_end().strip_suffix(after.trim_end()));
            let Some(said) = said else { continue };
            let sampled = tokenizer.decode(turn);
            if said.trim().is_empty() || !squash(&sampled).ends_with(&squash(said)) {
                continue;
            }
            // Text before a thought may be spelled like the end of its tag.
            let tag = sampled.rfind("</think>").map(|at| (at, at + "</think>".len()));
            let length = |from: usize| squash(&sampled[from..]).len();
            if tag.is_some_and(|(at, end)| length(end) < squash(said).len() && squash(said).len() < length(at)) {
                continue;
            }
            let kept = end_of(tokenizer, turn, said).unwrap_or_default();
            prop_assert!(holds(&written, kept), "{}: {:?} of {:?}", bundled.name, said, tokenizer.decode(turn));
        }
    }
}

// Field 11: the text of a turn is not mistaken for the control token of the turn's lead-in, which has the same name.
#[test]
fn a_turn_that_names_the_token_of_its_lead_in_is_as_it_was_sampled() {
    let text = "<tool_call>\n{\"name\":\"f\",  \"arguments\":{\"a\":7}}\n</tool_call><|im_start|>";
    let mut n_tried = 0;
    for bundled in BUNDLED.iter().filter(|one| one.name.contains("reads the text of turns")) {
        let named = "<|im_start|>";
        let call = text.strip_suffix(named).expect("it ends with the name");
        // The name as text, letter by letter.
        let letters =
            named.chars().map(|letter| bundled.tokenizer.encode_plain(&letter.to_string()));
        let letters: Vec<TokenId> = letters.flatten().collect();
        let drawn = [bundled.tokenizer.encode_plain(call), letters.clone()].concat();
        let message = bundled.renderer.parse(&drawn, &[]).to_message();
        assert_eq!(message.content.trim(), named);
        let (written, _) = tokens_of(bundled, &message, &drawn, &Message::user("And 3?"))
            .expect("the template renders it");
        assert!(holds(&written, &letters), "{}: {written:?} lacks {letters:?}", bundled.name);
        n_tried += 1;
    }
    assert!(n_tried > 0);
}
