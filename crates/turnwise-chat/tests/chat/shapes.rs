//! Renderers around a template: turns that begin and end as settings say, and tools in plain text.

use std::sync::Arc;

use proptest::prelude::*;
use serde_json::json;
use turnwise_chat::{
    TemplateRenderer, TemplateSettings, TextTools, ToolPrompt, Trust, TurnShape, TurnShapeSettings,
    shows_system,
};
use turnwise_environment::{Action, CallAttempt, Message, Role, ToolCall};
use turnwise_rollout::{Bridged, EndedTurn, Rendered, Renderer, Said};
use turnwise_trajectory::{StopReason, TokenId};

use crate::support::trained;
use crate::templates::calc;

/// A template without tools, as of many small chat models.
const PLAIN: &str = "{% for m in messages %}{% if m.role not in ['system', 'user', 'assistant'] %}{{ raise_exception('role') }}{% endif %}\
    {{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}\
    {% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";
/// The same for a model without system messages.
const NO_SYSTEM: &str = "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}\
    {{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}\
    {% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";
/// A template that opens a thought.
const THINKING: &str = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}\
    {% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n' }}{% endif %}";

const NOTHING: [TokenId; 0] = [];

fn of(template: &str) -> Arc<dyn Renderer> {
    let settings = TemplateSettings::default();
    Arc::new(TemplateRenderer::new(trained(), template, &Trust::Any, settings).expect("valid"))
}

fn shape(template: &str, settings: TurnShapeSettings) -> TurnShape {
    TurnShape::new(of(template), trained(), settings)
}

/// Returns the text of everything that was rendered.
fn text(rendered: &Rendered) -> String {
    let mut ids = rendered.close.clone();
    rendered.messages.iter().flatten().for_each(|span| span.extend_ids(&mut ids));
    ids.extend(&rendered.generation);
    ids.extend(&rendered.prefill);
    trained().decode(&ids)
}

fn ids(text: &str) -> Vec<TokenId> {
    trained().encode_with_markers(text)
}

fn call() -> ToolCall {
    ToolCall { id: "call_0".to_owned(), name: "calc".to_owned(), arguments: json!({"a": 1}) }
}

#[test]
fn a_prefill_begins_every_turn_and_is_part_of_the_action() {
    let settings = TurnShapeSettings { prefill: "it is ".to_owned(), ..Default::default() };
    let shape = shape(PLAIN, settings);
    let opened = shape.open(&"what?".into(), &[]).unwrap();
    assert!(text(&opened).ends_with("<|im_start|>assistant\nit is "));
    assert_eq!(trained().decode(&opened.prefill), "it is ");
    let turn = [&opened.prefill[..], &ids("7<|im_end|>")].concat();
    assert_eq!(shape.parse(&turn, &[]), Action::text("it is 7"));
    // A demonstration samples what comes behind the prefill.
    assert_eq!(trained().decode(&shape.write(&Action::text("it is 7"))), "7<|im_end|>");
    let history = [Message::user("what?"), Message::assistant("it is 7")];
    let said = [Said::new(&history[0]), Said { message: &history[1], drawn: Some(&turn) }];
    let ended = EndedTurn { ids: &turn, stop: StopReason::EndOfTurn };
    let next = shape.go_on(ended, &said, &[Message::user("and?")], &[]).unwrap();
    let Bridged::Append(next) = next else { panic!("nothing is rewritten") };
    assert_eq!(text(&next), "\n<|im_start|>user\nand?<|im_end|>\n<|im_start|>assistant\nit is ");
}

#[test]
fn a_stop_text_ends_a_turn_and_the_action_before_it() {
    let stop = vec!["\n\n".to_owned(), "user:".to_owned()];
    let shape = shape(PLAIN, TurnShapeSettings { stop, ..Default::default() });
    let constraint = shape.constraint().unwrap();
    let end = trained().token_id("<|im_end|>").unwrap();
    for (sampled, is_over) in
        [("it is", false), ("it is\n", false), ("it is\n\n", true), ("7 user: w", true)]
    {
        let allowed = constraint.allowed(&ids(sampled));
        assert_eq!(allowed, is_over.then(|| vec![end]), "{sampled:?}");
    }
    let turn = ids("it is 7\n\nuser: more<|im_end|>");
    assert_eq!(shape.parse(&turn, &[]).text, "it is 7");
    // The history keeps every token as it was sampled.
    let history = [Message::user("what?"), shape.parse(&turn, &[]).to_message()];
    let said = [Said::new(&history[0]), Said { message: &history[1], drawn: Some(&turn) }];
    let whole = shape.render(&said, &[]).unwrap();
    assert!(
        text(&whole).contains("assistant\nit is 7\n\nuser: more<|im_end|>"),
        "{}",
        text(&whole)
    );
}

#[test]
fn a_thought_beyond_its_budget_is_closed() {
    let settings = TurnShapeSettings { thinking_tokens: Some(3), ..Default::default() };
    let close = ids("\n</think>\n\n");
    let forced = |template: &str, start: &str| {
        let constraint = shape(template, settings.clone()).constraint().unwrap();
        let mut sampled = ids(start);
        let mut forced = Vec::new();
        while let Some(allowed) = constraint.allowed(&sampled) {
            assert_eq!(allowed.len(), 1);
            sampled.push(allowed[0]);
            forced.push(allowed[0]);
            assert!(forced.len() <= close.len(), "it ends");
        }
        forced
    };
    let long = "what is 7 plus 8";
    assert!(ids(long).len() >= 3);
    // The template has opened the thought, or the model does; an answer without a thought goes on.
    let within = ids(long)[..3].to_vec();
    assert_eq!(forced(THINKING, &trained().decode(&within)), close);
    assert_eq!(forced(PLAIN, &format!("<think>{}", trained().decode(&within[..2]))), close);
    assert_eq!(forced(PLAIN, long), NOTHING);
    assert_eq!(forced(THINKING, "it</think>is 7 plus"), NOTHING);
    assert_eq!(forced(THINKING, "it"), NOTHING);
    // A thought that opens later is closed at once.
    assert_eq!(forced(PLAIN, &format!("{long}<think>")), close);
    assert_eq!(forced(THINKING, "it</think>is 7 plus<think>"), close);
}

#[test]
fn a_long_turn_with_a_budget_takes_little_time() {
    let settings = TurnShapeSettings { thinking_tokens: Some(64), ..Default::default() };
    let constraint = shape(PLAIN, settings).constraint().unwrap();
    let turn = ids(&"what is 7 plus 8 ".repeat(400));
    assert!(turn.len() > 2000);
    // Seconds, where each token decoded every prefix again.
    let started = std::time::Instant::now();
    assert!((0..turn.len()).all(|n| constraint.allowed(&turn[..n]).is_none()));
    assert!(started.elapsed().as_secs() < 20);
}

#[test]
fn stop_texts_end_answers_and_not_thoughts() {
    let stop = || TurnShapeSettings { stop: vec!["\n".to_owned()], ..Default::default() };
    for (template, turn, ends) in [
        (PLAIN, "it is 7", false),
        (PLAIN, "it is 7\n", true),
        (PLAIN, "<think>it\nis", false),
        (PLAIN, "<think>it\n</think>\n\n7", false),
        (PLAIN, "<think>it</think>7\n", true),
        (THINKING, "it\nis", false),
        (THINKING, "it\n</think>\n\n7", false),
        (THINKING, "it\n</think>\n\n7\n", true),
    ] {
        let constraint = shape(template, stop()).constraint().unwrap();
        assert_eq!(constraint.allowed(&ids(turn)).is_some(), ends, "{turn:?}");
    }
    // A forced close has line breaks.
    let settings = TurnShapeSettings { thinking_tokens: Some(1), ..stop() };
    let constraint = shape(THINKING, settings).constraint().unwrap();
    let mut turn = ids("it");
    while let Some(allowed) = constraint.allowed(&turn) {
        turn.push(allowed[0]);
    }
    assert_eq!(trained().decode(&turn), "it\n</think>\n\n");
}

#[test]
fn tools_are_told_in_the_system_prompt_of_a_template_without_them() {
    let tools = [calc()];
    for (template, has_system) in [(PLAIN, true), (NO_SYSTEM, false)] {
        let inner = of(template);
        assert_eq!(shows_system(&*inner), has_system);
        let renderer = TextTools::new(inner.clone(), ToolPrompt::Hermes);
        let own = if has_system {
            vec![Message::system("Be brief."), Message::user("1 + 1?")]
        } else {
            vec![Message::user("1 + 1?")]
        };
        for messages in [own, vec![Message::user("1 + 1?")]] {
            let said: Vec<Said<'_>> = messages.iter().map(Said::new).collect();
            let told = renderer.render(&said, &tools).unwrap();
            assert_eq!(told.messages.len(), messages.len());
            let shown = text(&told);
            assert!(shown.contains("\"name\": \"calc\"") && shown.contains("1 + 1?"), "{shown}");
            assert_eq!(shown.matches("<|im_start|>system").count(), usize::from(has_system));
            // Without tools, nothing is added.
            assert_eq!(renderer.render(&said, &[]).unwrap(), inner.render(&said, &[]).unwrap());
        }
    }
}

#[test]
fn calls_and_their_answers_are_text() {
    let renderer = TextTools::new(of(PLAIN), ToolPrompt::Hermes);
    let tools = [calc()];
    let action = Action { calls: vec![CallAttempt::Call(call())], ..Action::text("") };
    let written = renderer.write(&action);
    let shown =
        "<tool_call>\n{\"name\": \"calc\", \"arguments\": {\"a\": 1}}\n</tool_call><|im_end|>";
    assert_eq!(trained().decode(&written), shown);
    let read = renderer.parse(&written, &tools);
    assert_eq!(read.tool_calls().next().map(|call| &call.arguments), Some(&json!({"a": 1})));
    let history = [Message::user("1?"), read.to_message()];
    let said = [Said::new(&history[0]), Said { message: &history[1], drawn: Some(&written) }];
    let ended = EndedTurn { ids: &written, stop: StopReason::EndOfTurn };
    let answer = Message::tool("call_0", "1");
    let next = renderer.go_on(ended, &said, std::slice::from_ref(&answer), &tools).unwrap();
    let Bridged::Append(next) = next else { panic!("nothing is rewritten") };
    let expected = "\n<|im_start|>user\n<tool_response>\n1\n</tool_response><|im_end|>\n<|im_start|>assistant\n";
    assert_eq!(text(&next), expected);
    // A whole rendering has the same tokens, the sampled ones unchanged.
    let all = [said[0], said[1], Said::new(&answer)];
    let whole = text(&renderer.render(&all, &tools).unwrap());
    assert!(whole.ends_with(&format!("assistant\n{shown}{expected}")), "{whole}");
    // A call that nobody sampled is written in the same form.
    let made = [Said::new(&history[0]), Said::new(&history[1]), Said::new(&answer)];
    assert_eq!(text(&renderer.render(&made, &tools).unwrap()), whole);
}

proptest! {
    #[test]
    fn an_agent_with_a_shape_goes_on_as_it_renders(
        prefill in "[a-z ]{0,6}",
        turns in prop::collection::vec(("[a-z0-9 ]{1,12}", "[a-z ]{1,8}"), 1..4),
    ) {
        let settings = TurnShapeSettings { prefill, stop: vec!["xyz".to_owned()], ..Default::default() };
        let shape = shape(PLAIN, settings);
        let mut history: Vec<(Message, Option<Vec<TokenId>>)> = vec![(Message::user("go"), None)];
        let mut seen = String::new();
        let said = |history: &[(Message, Option<Vec<TokenId>>)]| -> Rendered {
            let said: Vec<Said<'_>> = history.iter().map(|(message, drawn)| Said { message, drawn: drawn.as_deref() }).collect();
            shape.render(&said, &[]).unwrap()
        };
        let mut opened = said(&history);
        seen += &text(&opened);
        for (turn, answer) in turns {
            let sampled = ids(&format!("{turn}<|im_end|>"));
            let turn: Vec<TokenId> = opened.prefill.iter().chain(&sampled).copied().collect();
            seen += &trained().decode(&sampled);
            history.push((shape.parse(&turn, &[]).to_message(), Some(turn.clone())));
            let before: Vec<Said<'_>> = history.iter().map(|(message, drawn)| Said { message, drawn: drawn.as_deref() }).collect();
            let new = [Message::user(answer)];
            let ended = EndedTurn { ids: &turn, stop: StopReason::EndOfTurn };
            let Bridged::Append(next) = shape.go_on(ended, &before, &new, &[]).unwrap() else { panic!("nothing is rewritten") };
            seen += &text(&next);
            opened = next;
            let [message] = new;
            prop_assert_eq!(message.role, Role::User);
            history.push((message, None));
        }
        prop_assert_eq!(text(&said(&history)), seen);
    }
}

#[test]
fn a_demonstration_goes_on_in_a_forced_thought_or_closes_it() {
    let opened = of(THINKING).open(&"what?".into(), &[]).unwrap();
    assert_eq!(trained().decode(&opened.prefill), "<think>\n");
    let thoughtful = Action { reasoning: Some("easy".to_owned()), ..Action::text("it is 7") };
    let forced = ids("<think>\n\n</think>\n\n");
    for (prefill, action, expected) in [
        (&opened.prefill, &Action::text("it is 7"), "</think>\n\nit is 7<|im_end|>"),
        (&opened.prefill, &thoughtful, "easy\n</think>\n\nit is 7<|im_end|>"),
        (&ids("<think>"), &Action::text("it is 7"), "\n</think>\n\nit is 7<|im_end|>"),
        (&forced, &thoughtful, "it is 7<|im_end|>"),
        (&forced, &Action::text("it is 7"), "it is 7<|im_end|>"),
        (&Vec::new(), &thoughtful, "<think>\neasy\n</think>\n\nit is 7<|im_end|>"),
    ] {
        let written = of(THINKING).write_after(prefill, action);
        assert_eq!(trained().decode(&written), expected);
        let read = of(THINKING).parse(&[prefill, &written[..]].concat(), &[]);
        assert_eq!(read.text, action.text);
        assert!(read.reasoning.is_none() || read.reasoning == action.reasoning);
    }
    // The text that settings force at the beginning of a thought is a part of the thought.
    let settings = TurnShapeSettings { prefill: "eas".to_owned(), ..Default::default() };
    let shape = shape(THINKING, settings);
    let prefill = shape.open(&"what?".into(), &[]).unwrap().prefill;
    assert_eq!(trained().decode(&prefill), "<think>\neas");
    let written = shape.write_after(&prefill, &thoughtful);
    assert_eq!(trained().decode(&written), "y\n</think>\n\nit is 7<|im_end|>");
}
