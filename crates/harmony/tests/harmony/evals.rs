//! The demo model's prompts, built from chat completions requests as a front
//! door would, and its answers, folded as a front door would.

use std::collections::HashMap;

use chorale_harmony::{
    Channel, Conversation, DeveloperContent, Kind, Message, Part, RenderOptions, ResponseFormat,
    StreamParser, SystemContent, TokenId, Tool, ToolNamespace, render_for_completion, render_text,
};
use serde::Deserialize;
use serde_json::Value;

use crate::wire::{effort, fixture};

#[derive(Deserialize)]
struct Fixture {
    items: Vec<Item>,
}

#[derive(Deserialize)]
struct Item {
    id: String,
    reasoning_effort: String,
    model_identity: String,
    knowledge_cutoff: String,
    current_date: Option<String>,
    messages: Vec<ChatMessage>,
    tools: Vec<ChatTool>,
    response_schema: Option<Value>,
    prompt_text: String,
    prompt_token_ids: Vec<TokenId>,
    completion_token_ids: Vec<TokenId>,
    parsed: Parsed,
}

#[derive(Deserialize)]
struct ChatMessage {
    role: String,
    content: Option<String>,
    reasoning: Option<String>,
    #[serde(default)]
    tool_calls: Vec<ChatCall>,
    tool_call_id: Option<String>,
}

#[derive(Deserialize)]
struct ChatCall {
    id: String,
    function: ChatFunction,
}

#[derive(Deserialize, PartialEq, Debug)]
struct ChatFunction {
    name: String,
    arguments: String,
}

#[derive(Deserialize)]
struct ChatTool {
    function: ChatToolFunction,
}

#[derive(Deserialize)]
struct ChatToolFunction {
    name: String,
    description: String,
    parameters: Option<Value>,
}

#[derive(Deserialize)]
struct Parsed {
    reasoning: Option<String>,
    content: Option<String>,
    tool_calls: Vec<ChatFunction>,
}

#[test]
fn prompts_of_the_demo_model_come_out_exactly() {
    let items = fixture::<Fixture>("demo-model/evals.json").items;
    assert_eq!(items.len(), 164);
    for item in items {
        let id = item.id.clone();
        let developer = |item: &Item| DeveloperContent {
            instructions: developer_text(item).map(str::to_owned),
            ..DeveloperContent::default()
        };
        let conversation = conversation(&item, developer(&item));
        let options = RenderOptions::default();
        assert_eq!(render_text(&conversation, &options).unwrap(), item.prompt_text, "{id}");
        assert_eq!(render_for_completion(&conversation, &options).unwrap(), item.prompt_token_ids, "{id}");
    }
}

#[test]
fn response_formats_stand_where_the_demo_model_learnt_them() {
    let items = fixture::<Fixture>("demo-model/evals.json").items;
    let mut num_checked = 0;
    for item in items {
        let Some(schema) = item.response_schema.clone() else { continue };
        let text = developer_text(&item).unwrap_or_default();
        let (instructions, format) = text.split_once("\n\n# Response Formats\n\n## ").unwrap();
        let (name, _) = format.split_once("\n\n").unwrap();
        let developer = DeveloperContent {
            instructions: Some(instructions.to_owned()),
            tools: Vec::new(),
            response_formats: vec![ResponseFormat { name: name.to_owned(), description: None, schema }],
        };
        let conversation = conversation(&item, developer);
        let tokens = render_for_completion(&conversation, &RenderOptions::default()).unwrap();
        assert_eq!(tokens, item.prompt_token_ids, "{}", item.id);
        num_checked += 1;
    }
    assert!(num_checked > 0);
}

#[test]
fn completions_fold_to_chat_messages() {
    for item in fixture::<Fixture>("demo-model/evals.json").items {
        let id = item.id;
        let mut parser = StreamParser::new();
        let mut reasoning = String::new();
        let mut content = String::new();
        let mut calls: Vec<ChatFunction> = Vec::new();
        for token in item.completion_token_ids {
            for delta in parser.push(token) {
                match (delta.kind(), &delta.part) {
                    (Kind::Reasoning, Part::Text(text)) => reasoning.push_str(text),
                    (Kind::Content, Part::Text(text)) => content.push_str(text),
                    (Kind::ToolCall { name }, Part::Started) => {
                        calls.push(ChatFunction { name: name.to_owned(), arguments: String::new() });
                    }
                    (Kind::ToolCall { .. }, Part::Text(text)) => {
                        calls.last_mut().unwrap().arguments.push_str(text);
                    }
                    (Kind::NotAssistant, _) => panic!("{id}: {delta:?}"),
                    (_, Part::Started | Part::Ended(_)) => {}
                }
            }
        }
        assert!(parser.finish().is_empty(), "{id} ends in a stop token");
        assert_eq!(parser.repairs().total(), 0, "{id}: {:?}", parser.repairs());
        assert_eq!(reasoning, item.parsed.reasoning.unwrap_or_default(), "{id}");
        assert_eq!(content, item.parsed.content.unwrap_or_default(), "{id}");
        assert_eq!(calls, item.parsed.tool_calls, "{id}");
    }
}

fn developer_text(item: &Item) -> Option<&str> {
    item.messages.iter().find(|message| message.role == "developer")?.content.as_deref()
}

fn conversation(item: &Item, mut developer: DeveloperContent) -> Conversation {
    let system = SystemContent {
        model_identity: Some(item.model_identity.clone()),
        knowledge_cutoff: Some(item.knowledge_cutoff.clone()),
        current_date: item.current_date.clone(),
        reasoning_effort: Some(effort(&item.reasoning_effort)),
        ..SystemContent::default()
    };
    let mut conversation = Conversation::new([Message::system(system)]);
    if !item.tools.is_empty() {
        developer.tools = vec![ToolNamespace::functions(item.tools.iter().map(tool))];
    }
    if developer != DeveloperContent::default() {
        conversation.extend([Message::developer(developer)]);
    }

    let mut names = HashMap::new();
    for message in &item.messages {
        for call in &message.tool_calls {
            names.insert(call.id.as_str(), format!("functions.{}", call.function.name));
        }
        conversation.extend(turn(message, &names));
    }
    conversation
}

fn tool(tool: &ChatTool) -> Tool {
    let function = &tool.function;
    Tool {
        name: function.name.clone(),
        description: function.description.clone(),
        parameters: function.parameters.clone(),
    }
}

fn turn(message: &ChatMessage, names: &HashMap<&str, String>) -> Vec<Message> {
    let content = message.content.clone();
    match message.role.as_str() {
        "developer" => Vec::new(),
        "user" => vec![Message::user(content.unwrap())],
        "tool" => {
            let id = message.tool_call_id.as_deref().unwrap();
            vec![Message::tool_result(&names[id], content.unwrap())]
        }
        "assistant" => {
            let reasoning = message.reasoning.clone().map(|text| Message::assistant(Channel::Analysis, text));
            let calls = message.tool_calls.iter().map(|call| {
                Message::tool_call(names[call.id.as_str()].clone(), call.function.arguments.clone())
            });
            let answer = content.map(|text| Message::assistant(Channel::Final, text));
            reasoning.into_iter().chain(calls).chain(answer).collect()
        }
        other => panic!("role {other}"),
    }
}
