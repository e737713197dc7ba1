//! Every conversation of `render.json`, token for token.

use chorale_harmony::{
    AnalysisHistory, Conversation, RenderOptions, Role, TokenId, render_for_completion, render_for_training,
    render_text,
};
use serde::Deserialize;

use crate::wire::{WireConversation, fixture};

#[derive(Deserialize)]
struct Fixture {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    name: String,
    next_turn_role: String,
    conversation: WireConversation,
    ids: Option<Vec<TokenId>>,
    ids_keep_analysis: Option<Vec<TokenId>>,
    ids_training: Option<Vec<TokenId>>,
    text: Option<String>,
    error: Option<String>,
}

#[test]
fn conversations_render_as_the_reference_renders_them() {
    let cases = fixture::<Fixture>("harmony/render.json").cases;
    assert_eq!(cases.len(), 38);
    cases.into_iter().for_each(check);
}

fn check(case: Case) {
    let name = case.name;
    let conversation = Conversation::from(case.conversation);
    let next = Role::from_name(&case.next_turn_role).unwrap();
    let drop = RenderOptions { analysis: AnalysisHistory::DropAnswered, next };
    let keep = RenderOptions { analysis: AnalysisHistory::Keep, next };
    let render = |options: &RenderOptions| render_for_completion(&conversation, options).ok();

    assert_eq!(render(&drop), case.ids, "{name}");
    assert_eq!(render_text(&conversation, &drop).ok(), case.text, "{name}");
    assert_eq!(render(&drop).is_none(), case.error.is_some(), "{name}");
    assert_eq!(render(&keep), case.ids_keep_analysis.or(case.ids), "{name}, keeping analysis");
    if let Some(expected) = case.ids_training {
        let tokens = render_for_training(&conversation, drop.analysis).unwrap();
        assert_eq!(tokens, expected, "{name}, for training");
    }
}
