//! The templates that are saved with a model make the prompts that it was trained on.

use proptest::prelude::*;
use serde_json::json;
use turnwise_chat::{
    ChatMl, ChatMlSettings, Llama3, Llama3Settings, TemplateRenderer, TemplateSettings, Thinking,
    ToolPrompt, Trust,
};
use turnwise_environment::{Observation, ToolSpec};
use turnwise_rollout::Renderer;

use crate::support::{ids_of, llama_tokenizer, trained};
use crate::templates::{calc, conversation};

fn tool_prompt() -> impl Strategy<Value = ToolPrompt> {
    prop_oneof![
        Just(ToolPrompt::Hermes),
        Just(ToolPrompt::Signatures),
        Just(ToolPrompt::Omit),
        Just(ToolPrompt::Between {
            open: "# \"Tools\"\\\n<t>".to_owned(),
            close: "\n</t>\té".to_owned()
        }),
    ]
}

fn tools() -> Vec<ToolSpec> {
    let parameters = json!({"type": "object", "required": ["b", "a"], "properties": {"c": {}, "a": {}, "b": {"type": "string"}, "d": {}}});
    let bare = ToolSpec { name: "roll".to_owned(), parameters: json!({}), ..calc() };
    vec![ToolSpec { parameters, ..calc() }, bare]
}

proptest! {
    // Each case makes renderers and compares whole conversations.
    #![proptest_config(ProptestConfig { cases: ProptestConfig::default().cases / 4, ..ProptestConfig::default() })]

    #[test]
    fn the_saved_template_of_chatml_is_its_renderer(
        messages in conversation(),
        prompt in tool_prompt(),
        has_tools in any::<bool>(),
        keeps in any::<bool>(),
        enable_thinking in any::<bool>(),
    ) {
        let thinking = if keeps { Thinking::Keep } else { Thinking::Follow };
        let settings = ChatMlSettings { tools: prompt, thinking, enable_thinking, ..ChatMlSettings::default() };
        let chat = ChatMl::new(trained(), settings).expect("it has the markers");
        let settings = TemplateSettings { thinking, ..TemplateSettings::default() };
        let saved = TemplateRenderer::new(trained(), &chat.template(), &Trust::Any, settings).expect("a template");
        let tools = if has_tools { tools() } else { Vec::new() };
        let observation = Observation::new(messages);
        let (own, saved) = (chat.open(&observation, &tools), saved.open(&observation, &tools));
        let (own, saved) = (ids_of(&own.expect("it renders")), ids_of(&saved.expect("it renders")));
        prop_assert_eq!(chat.text(&own), chat.text(&saved));
        prop_assert_eq!(own, saved);
    }

    #[test]
    fn the_saved_template_of_llama_3_is_its_renderer(
        messages in conversation(),
        has_tools in any::<bool>(),
        tools_in_user_message in any::<bool>(),
    ) {
        let settings = Llama3Settings { tools_in_user_message, date: "1 Jan \"2025\"".to_owned(), ..Llama3Settings::default() };
        let chat = Llama3::new(llama_tokenizer(), settings).expect("it has the markers");
        let settings = TemplateSettings { stop: Vec::new(), ..TemplateSettings::default() };
        let saved = TemplateRenderer::new(llama_tokenizer(), &chat.template(), &Trust::Any, settings).expect("a template");
        prop_assert_eq!(saved.stop_tokens()[0], chat.stop_tokens()[0]);
        let tools = if has_tools { tools() } else { Vec::new() };
        let observation = Observation::new(messages);
        let (own, saved) = (chat.open(&observation, &tools), saved.open(&observation, &tools));
        let (own, saved) = (ids_of(&own.expect("it renders")), ids_of(&saved.expect("it renders")));
        prop_assert_eq!(chat.text(&own), chat.text(&saved));
        prop_assert_eq!(own, saved);
    }
}
