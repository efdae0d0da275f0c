//! Expressions that templates take from Python; `data/jinja.py` makes the data with transformers.

use serde_json::Value;
use turnwise_chat::{TemplateRenderer, TemplateSettings, Trust};
use turnwise_environment::Message;
use turnwise_rollout::{Renderer, Said};

use crate::support::trained;

#[test]
fn expressions_give_what_python_gives() {
    let data: Value = serde_json::from_str(include_str!("data/jinja.json")).expect("JSON");
    let arguments = data["variables"].as_object().expect("an object").clone();
    let mut wrong = Vec::new();
    for case in data["cases"].as_array().expect("a list") {
        let template = case["template"].as_str().unwrap();
        let settings =
            TemplateSettings { arguments: arguments.clone(), ..TemplateSettings::default() };
        let renderer = TemplateRenderer::new(trained(), template, &Trust::Any, settings);
        let read = renderer.map_err(|error| error.to_string()).and_then(|renderer| {
            let message = Message::user("question");
            let output = renderer.render(&[Said::new(&message)], &[]);
            let output = output.map_err(|error| error.to_string())?;
            let mut ids = Vec::new();
            output.messages.iter().flatten().for_each(|span| span.extend_ids(&mut ids));
            ids.extend(output.generation);
            ids.extend(output.prefill);
            Ok(renderer.text(&ids))
        });
        if read.as_deref().ok() != case["output"].as_str() {
            wrong.push((template, case["output"].clone(), read));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}
