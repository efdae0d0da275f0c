//! Thoughts in the forms of several families, in templates that drop them from history.

use serde_json::json;
use turnwise_chat::{TemplateRenderer, TemplateSettings, Thinking, Trust};
use turnwise_environment::{Action, CallAttempt, Message, ToolCall};
use turnwise_rollout::{Bridged, EndedTurn, Rendered, Renderer, Said};
use turnwise_trajectory::{StopReason, TokenId};

use crate::support::trained;

/// The channels of gpt-oss, which reads thoughts from `thinking`.
const CHANNELS: &str = "{% for m in messages %}{% if m.role == 'assistant' %}\
    {% if m.thinking and loop.last %}<|start|>assistant<|channel|>analysis<|message|>{{ m.thinking }}<|end|>{% endif %}\
    <|start|>assistant<|channel|>final<|message|>{{ m.content }}<|im_end|>\
    {% else %}<|start|>{{ m.role }}<|message|>{{ m.content }}<|im_end|>{% endif %}{% endfor %}\
    {% if add_generation_prompt %}<|start|>assistant{% endif %}";
/// Thoughts in the text, as Magistral has them.
const BRACKETS: &str = "{% for m in messages %}{% set c = m.content %}\
    {% if '[THINK]' in c and not loop.last %}{% set c = c.split('[/THINK]')[1] %}{% endif %}\
    {{ '<|im_start|>' + m.role + '\n' + c + '<|im_end|>' }}{% endfor %}\
    {% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";
/// Thoughts in `reasoning`, opened by the template.
const SEED: &str = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}\
    {% if m.reasoning and loop.last %}{{ '<seed:think>' + m.reasoning + '</seed:think>' }}{% endif %}\
    {{ m.content + '<|im_end|>' }}{% endfor %}\
    {% if add_generation_prompt %}{{ '<|im_start|>assistant\n<seed:think>' }}{% endif %}";

fn of(template: &str, thinking: Thinking) -> TemplateRenderer {
    let settings = TemplateSettings { thinking, ..TemplateSettings::default() };
    TemplateRenderer::new(trained(), template, &Trust::Any, settings).expect("valid")
}

fn text(rendered: &Rendered) -> String {
    let mut ids = Vec::new();
    rendered.messages.iter().flatten().for_each(|span| span.extend_ids(&mut ids));
    ids.extend(&rendered.generation);
    ids.extend(&rendered.prefill);
    trained().decode(&ids)
}

fn cases() -> [(&'static str, &'static str, &'static str); 3] {
    [
        (
            CHANNELS,
            "<|channel|>analysis<|message|>Easy.<|end|><|start|>assistant<|channel|>final<|message|>4<|im_end|>",
            "<|start|>assistant<|channel|>final<|message|>4<|im_end|><|start|>user",
        ),
        (BRACKETS, "[THINK]Easy.[/THINK]4<|im_end|>", "assistant\n4<|im_end|><|im_start|>user"),
        (
            SEED,
            "<seed:think>Easy.</seed:think>4<|im_end|>",
            "assistant\n4<|im_end|><|im_start|>user",
        ),
    ]
}

#[test]
fn thoughts_are_no_text_and_leave_history_as_the_template_says() {
    for (template, turn, kept) in cases() {
        for mode in [Thinking::Follow, Thinking::Keep] {
            let renderer = of(template, mode);
            let question = Message::user("2 + 2?");
            let opened = renderer.render(&[Said::new(&question)], &[]).unwrap();
            let ids: Vec<TokenId> = trained().encode_with_markers(turn);
            let action = renderer.parse(&ids, &[]);
            let expected = Action { reasoning: Some("Easy.".to_owned()), ..Action::text("4") };
            assert_eq!(action, expected, "{template}");
            let answer = action.to_message();
            let history = [Said::new(&question), Said { message: &answer, drawn: Some(&ids) }];
            let sampled = &ids[opened.prefill.len()..];
            let ended = EndedTurn { ids: sampled, stop: StopReason::EndOfTurn };
            let new = Message::user("3 + 3?");
            let next = renderer.go_on(ended, &history, std::slice::from_ref(&new), &[]).unwrap();
            let is_rewritten = next == Bridged::Rewrite;
            assert_eq!(is_rewritten, mode == Thinking::Follow, "{template}");
            let whole = [history[0], history[1], Said::new(&new)];
            let shown = text(&renderer.render(&whole, &[]).unwrap());
            assert_eq!(shown.contains("Easy."), mode == Thinking::Keep, "{shown}");
            assert!(mode == Thinking::Keep || shown.contains(kept), "{shown}");
        }
    }
}

#[test]
fn a_demonstration_thinks_in_the_form_of_the_template() {
    for (template, turn, _) in cases() {
        let renderer = of(template, Thinking::Keep);
        let question = Message::user("2 + 2?");
        let prefill = renderer.render(&[Said::new(&question)], &[]).unwrap().prefill;
        let action = Action { reasoning: Some("Easy.".to_owned()), ..Action::text("4") };
        let written = [prefill.clone(), renderer.write_after(&prefill, &action)].concat();
        assert_eq!(trained().decode(&written), turn);
        let silent = [prefill.clone(), renderer.write_after(&prefill, &Action::text("4"))].concat();
        assert_eq!(
            renderer.parse(&silent, &[]),
            Action::text("4"),
            "{}",
            trained().decode(&silent)
        );
    }
}

/// Text between tags, as Command R7B writes it.
const TAGGED: &str = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' %}\
    {{ '<|START_TEXT|>' + m.content + '<|END_TEXT|>' }}{% else %}{{ m.content }}{% endif %}{{ '<|im_end|>' }}{% endfor %}\
    {% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";
/// Other newlines around thoughts than usual, and a call only in a turn that no other follows.
const TIGHT: &str = "{% for m in messages %}{% if not (loop.last and add_generation_prompt and m.tool_calls) %}\
    {{ '<|im_start|>' + m.role + '\n' }}{% if m.reasoning_content %}{{ '<think>' + m.reasoning_content + '</think>' }}{% endif %}{{ m.content }}\
    {% for call in m.tool_calls or [] %}{{ '<TOOLCALL>[' + {'name': call.function.name, 'arguments': call.function.arguments}|tojson + ']</TOOLCALL>' }}{% endfor %}\
    {{ '<|im_end|>' }}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

#[test]
fn a_demonstration_has_the_text_of_the_template() {
    let call = ToolCall { id: "call_0".to_owned(), name: "look".to_owned(), arguments: json!({}) };
    let called = Action { calls: vec![CallAttempt::Call(call)], ..Action::text("") };
    let thought = Action { reasoning: Some("Easy.".to_owned()), ..Action::text("4") };
    let list = r#"<TOOLCALL>[{"name": "look", "arguments": {}}]</TOOLCALL><|im_end|>"#;
    for (template, action, written) in [
        (TAGGED, Action::text("4"), "<|START_TEXT|>4<|END_TEXT|><|im_end|>"),
        // The template has no thoughts: they are written as most models do.
        (
            TAGGED,
            thought.clone(),
            "<think>\nEasy.\n</think>\n\n<|START_TEXT|>4<|END_TEXT|><|im_end|>",
        ),
        (TIGHT, thought, "<think>Easy.</think>4<|im_end|>"),
        (TIGHT, called, list),
    ] {
        let renderer = of(template, Thinking::Keep);
        let ids = renderer.write(&action);
        assert_eq!(trained().decode(&ids), written);
        assert_eq!(renderer.parse(&ids, &[]), action, "{written}");
    }
}

/// Calls before the text, which thoughts are a part of (Motif 2).
const CALLS_FIRST: &str = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}\
    {% for call in m.tool_calls or [] %}{{ '<tool_call>' + {'name': call.function.name, 'arguments': call.function.arguments}|tojson + '</tool_call>' }}{% endfor %}\
    {% set c = m.content %}{% if '</think>' in c and not loop.last %}{% set c = c.split('</think>')[-1].strip() %}{% endif %}\
    {{ c + '<|im_end|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

#[test]
fn thoughts_behind_a_call_do_not_take_the_call_along() {
    let renderer = of(CALLS_FIRST, Thinking::Follow);
    let call = ToolCall { id: "call_0".to_owned(), name: "look".to_owned(), arguments: json!({}) };
    let calls = vec![CallAttempt::Call(call)];
    let action = Action { calls, reasoning: Some("Hm.".to_owned()), ..Action::text("") };
    let call = r#"<tool_call>{"name": "look", "arguments": {}}</tool_call>"#;
    let written = renderer.write(&action);
    let expected = format!("<think>\nHm.\n</think>\n\n{call}<|im_end|>");
    assert_eq!(trained().decode(&written), expected);
    // A policy may sample them in the other order.
    let other =
        trained().encode_with_markers(&format!("{call}<think>\nHm.\n</think>\n\n<|im_end|>"));
    for turn in [written, other] {
        let messages = [
            Message::user("?"),
            renderer.parse(&turn, &[]).to_message(),
            Message::tool("call_0", "7"),
        ];
        let mut said = messages.each_ref().map(Said::new);
        said[1].drawn = Some(&turn);
        let shown = text(&renderer.render(&said, &[]).unwrap());
        assert!(shown.contains(&format!("assistant\n{call}<|im_end|>")), "{shown}");
    }
}

#[test]
fn a_message_has_its_thoughts_under_a_key_that_the_template_reads() {
    let reads = |template: &str, key: &str| of(template, Thinking::Keep).reads_thoughts(key);
    assert!(reads(CHANNELS, "thinking") && !reads(CHANNELS, "reasoning_content"));
    assert!(reads(TIGHT, "reasoning_content") && !reads(TIGHT, "reasoning"));
    assert!(reads("{{ messages[0]['reasoning'] }}", "reasoning"));
    assert!(!reads("{{ reasoning_effort }}{# thinking #}", "thinking"));
}

#[test]
fn a_conversation_that_ends_has_the_text_of_the_template() {
    let template = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}\
        {% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% else %}The end.{% endif %}";
    let renderer = of(template, Thinking::Keep);
    let messages = [Message::user("a\rb\u{7}"), Message::assistant("c")];
    let ended = renderer.render_ended(&messages.each_ref().map(Said::new), &[]).unwrap();
    // Control characters of the task stay.
    let expected =
        "<|im_start|>user\na\rb\u{7}<|im_end|>\n<|im_start|>assistant\nc<|im_end|>\nThe end.";
    assert_eq!(text(&ended), expected);
    assert_eq!(ended.messages.len(), 2);
}
