//! Models, the tokenizer, keys and connections.

use super::world::{CONTEXT, Client, Setup, ask, chat, tokens};
use crate::auth::KeySettings;
use chorale_wire::inference::v1;
use tonic::metadata::MetadataValue;
use tonic::{Code, Request};

const ANSWER: &str = "<|channel|>final<|message|>Yes.<|return|>";

#[tokio::test]
async fn the_models_names_are_listed_and_any_of_them_answers() {
    let world = Setup::new(&[ANSWER]).serve().await;
    let mut client = world.client().await;
    let models = client.list_models(v1::ListModelsRequest {}).await.unwrap().into_inner().models;
    let ids: Vec<&str> = models.iter().map(|model| model.id.as_str()).collect();
    assert_eq!((ids, models[0].max_context_tokens), (vec!["gpt-oss", "alias"], CONTEXT));
    for (model, expected) in [("", None), ("alias", None), ("gpt-4", Some(Code::NotFound))] {
        let answer = chat(&mut client, v1::ChatRequest { model: model.into(), ..ask() }).await;
        assert_eq!(answer.err().map(|status| status.code()), expected, "{model:?}");
    }
}

#[tokio::test]
async fn texts_and_conversations_are_tokenized_and_tokens_spelled() {
    let world = Setup::new(&[ANSWER]).serve().await;
    let mut client = world.client().await;
    let tokenize = |input| v1::TokenizeRequest { model: String::new(), input: Some(input) };
    let text = v1::tokenize_request::Input::Text("one <|end|>".into());
    let answer = client.tokenize(tokenize(text)).await.unwrap().into_inner();
    assert_eq!(answer.max_context_tokens, CONTEXT);
    assert!(!answer.token_ids.contains(&chorale_harmony::special::END));
    let ids = answer.token_ids;
    let request = v1::DetokenizeRequest { tokens: Some(v1::TokenIds { ids }), ..Default::default() };
    assert_eq!(client.detokenize(request).await.unwrap().into_inner().text, "one <|end|>");

    let chat = v1::tokenize_request::Input::Chat(ask());
    let ids = client.tokenize(tokenize(chat)).await.unwrap().into_inner().token_ids;
    assert!(ids.ends_with(&tokens("<|start|>user<|message|>Hi<|end|><|start|>assistant")));
}

fn with_key<M>(message: M, key: &str) -> Request<M> {
    let mut request = Request::new(message);
    let value = MetadataValue::try_from(format!("Bearer {key}")).unwrap();
    request.metadata_mut().insert("authorization", value);
    request
}

#[tokio::test]
async fn keys_are_asked_for_and_callers_see_only_their_own() {
    let keys = vec![KeySettings::new("a", "sk-a"), KeySettings::new("b", "sk-b")];
    let world = Setup { keys, ..Setup::endless() }.serve().await;
    let mut client = world.client().await;
    assert_eq!(client.chat(ask()).await.unwrap_err().code(), Code::Unauthenticated);
    assert_eq!(client.chat(with_key(ask(), "sk-c")).await.unwrap_err().code(), Code::Unauthenticated);
    let unary = client.list_models(v1::ListModelsRequest {}).await.unwrap_err();
    assert_eq!(unary.code(), Code::Unauthenticated);
    let watch = client.watch_load_status(v1::WatchLoadStatusRequest::default()).await.unwrap_err();
    assert_eq!(watch.code(), Code::Unauthenticated);

    let mut stream = client.chat(with_key(ask(), "sk-a")).await.unwrap().into_inner();
    let request_id = super::world::started(&mut stream).await;
    let list = async |client: &mut Client, key| {
        let request = with_key(v1::ListRequestsRequest {}, key);
        client.list_requests(request).await.unwrap().into_inner().requests
    };
    assert_eq!(list(&mut client, "sk-b").await, []);
    assert_eq!(list(&mut client, "sk-a").await[0].key_name, "a");
    let cancel = v1::CancelRequest { request_id };
    let refused = client.cancel(with_key(cancel.clone(), "sk-b")).await.unwrap_err();
    assert_eq!(refused.code(), Code::NotFound);
    client.cancel(with_key(cancel, "sk-a")).await.unwrap();
}

#[tokio::test]
async fn a_connection_that_says_nothing_gives_its_place_back() {
    let mut setup = Setup::new(&[ANSWER]);
    setup.config.max_connections = 1;
    let world = setup.serve().await;
    let silent = tokio::net::TcpStream::connect(world.address).await.unwrap();
    let mut client = tokio::time::timeout(super::world::PATIENCE, world.client()).await.unwrap();
    assert!(chat(&mut client, ask()).await.is_ok());
    drop(silent);
}
