//! What clients get wrong: each case is refused with the field's name, and the
//! server answers the next request.

use super::scripted::{TestServer, ask, read};
use serde_json::{Value, json};

/// Chat bodies by what they say wrong, and the field that must be named.
fn chat_cases() -> Vec<(Value, &'static str)> {
    let tool = |function: Value| json!({"tools": [{"type": "function", "function": function}]});
    let say = |message: Value| json!({"messages": [message]});
    let part = |part: Value| json!({"messages": [{"role": "user", "content": [part]}]});
    let call =
        |call: Value| json!({"messages": [{"role": "assistant", "content": "", "tool_calls": [call]}]});
    let schema = |schema: Value| json!({"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}});
    let f = json!([{"type": "function", "function": {"name": "f"}}]);
    vec![
        (json!({"model": 5}), "model"),
        (json!({"messages": null}), "messages"),
        (json!({"messages": "Hi"}), "messages"),
        (json!({"messages": {}}), "messages"),
        (json!({"messages": []}), "messages"),
        (json!({"messages": ["Hi"]}), "messages[0]"),
        (json!({"messages": [null]}), "messages[0]"),
        (say(json!({"content": "Hi"})), "messages[0].role"),
        (say(json!({"role": "robot", "content": "Hi"})), "messages[0].role"),
        (say(json!({"role": 1, "content": "Hi"})), "messages[0].role"),
        (say(json!({"role": "user"})), "messages[0].content"),
        (say(json!({"role": "user", "content": null})), "messages[0].content"),
        (say(json!({"role": "user", "content": 7})), "messages[0].content"),
        (say(json!({"role": "user", "content": {"text": "Hi"}})), "messages[0].content"),
        (say(json!({"role": "user", "content": "Hi", "name": 1})), "messages[0].name"),
        (say(json!({"role": "system", "content": 7})), "messages[0].content"),
        (say(json!({"role": "assistant"})), "messages[0].content"),
        (say(json!({"role": "assistant", "content": "x", "reasoning": 1})), "messages[0].reasoning"),
        (
            say(json!({"role": "assistant", "content": "x", "reasoning_content": 1})),
            "messages[0].reasoning_content",
        ),
        (part(json!("Hi")), "messages[0].content[0]"),
        (part(json!({"text": "Hi"})), "messages[0].content[0].type"),
        (part(json!({"type": "text"})), "messages[0].content[0].text"),
        (part(json!({"type": "text", "text": 5})), "messages[0].content[0].text"),
        (part(json!({"type": "image_url", "image_url": {"url": "x"}})), "messages[0].content[0].type"),
        (part(json!({"type": "input_audio"})), "messages[0].content[0].type"),
        (call(json!("f")), "messages[0].tool_calls[0]"),
        (call(json!({"function": {"name": "f"}})), "messages[0].tool_calls[0].id"),
        (call(json!({"id": "a"})), "messages[0].tool_calls[0].function"),
        (call(json!({"id": "a", "type": "custom"})), "messages[0].tool_calls[0].type"),
        (call(json!({"id": "a", "function": {}})), "messages[0].tool_calls[0].function.name"),
        (call(json!({"id": "a", "function": {"name": "f g"}})), "messages[0].tool_calls[0].function.name"),
        (
            call(json!({"id": "a", "function": {"name": "f", "arguments": {}}})),
            "messages[0].tool_calls[0].function.arguments",
        ),
        (json!({"messages": [{"role": "assistant", "tool_calls": {}}]}), "messages[0].tool_calls"),
        (say(json!({"role": "tool", "content": "x"})), "messages[0].tool_call_id"),
        (say(json!({"role": "tool", "content": "x", "tool_call_id": "nobody"})), "messages[0].tool_call_id"),
        (say(json!({"role": "tool", "content": "x", "tool_call_id": 3})), "messages[0].tool_call_id"),
        (say(json!({"role": "function", "content": "x"})), "messages[0].name"),
        (json!({"temperature": "hot"}), "temperature"),
        (json!({"temperature": -0.1}), "temperature"),
        (json!({"temperature": 2.1}), "temperature"),
        (json!({"temperature": [1]}), "temperature"),
        (json!({"top_p": 0}), "top_p"),
        (json!({"top_p": 1.01}), "top_p"),
        (json!({"top_k": -2}), "top_k"),
        (json!({"top_k": 1.5}), "top_k"),
        (json!({"min_p": 1.5}), "min_p"),
        (json!({"presence_penalty": 3}), "presence_penalty"),
        (json!({"frequency_penalty": -3}), "frequency_penalty"),
        (json!({"repetition_penalty": 0}), "repetition_penalty"),
        (json!({"logit_bias": [1]}), "logit_bias"),
        (json!({"logit_bias": {"word": 1}}), "logit_bias"),
        (json!({"logit_bias": {"201088": 1}}), "logit_bias"),
        (json!({"logit_bias": {"-1": 1}}), "logit_bias"),
        (json!({"logit_bias": {"5": 101}}), "logit_bias.5"),
        (json!({"seed": 1.5}), "seed"),
        (json!({"seed": "lucky"}), "seed"),
        (json!({"n": 0}), "n"),
        (json!({"n": 17}), "n"),
        (json!({"n": "2"}), "n"),
        (json!({"max_tokens": 0}), "max_tokens"),
        (json!({"max_tokens": -5}), "max_tokens"),
        (json!({"max_tokens": 1e30}), "max_tokens"),
        (json!({"max_completion_tokens": true}), "max_completion_tokens"),
        (json!({"min_tokens": -1}), "min_tokens"),
        (json!({"min_tokens": 9, "max_tokens": 8}), "min_tokens"),
        (json!({"stop": 5}), "stop"),
        (json!({"stop": ""}), "stop"),
        (json!({"stop": ["a", ""]}), "stop[1]"),
        (json!({"stop": ["a", 1]}), "stop[1]"),
        (json!({"stop": vec!["x"; 17]}), "stop"),
        (json!({"stop": "x".repeat(1025)}), "stop"),
        (json!({"stop_token_ids": 5}), "stop_token_ids"),
        (json!({"stop_token_ids": [201_088]}), "stop_token_ids[0]"),
        (json!({"logprobs": 3}), "logprobs"),
        (json!({"top_logprobs": 3}), "top_logprobs"),
        (json!({"logprobs": true, "top_logprobs": 21}), "top_logprobs"),
        (json!({"stream": "yes"}), "stream"),
        (json!({"stream": true, "stream_options": 1}), "stream_options"),
        (json!({"stream": true, "stream_options": {"include_usage": 1}}), "stream_options.include_usage"),
        (json!({"stream_options": {"include_usage": true}}), "stream_options"),
        (json!({"user": 5}), "user"),
        (json!({"priority": "high"}), "priority"),
        (json!({"cache_salt": ""}), "cache_salt"),
        (json!({"request_id": "a b"}), "request_id"),
        (json!({"reasoning_effort": "extreme"}), "reasoning_effort"),
        (json!({"reasoning_effort": 3}), "reasoning_effort"),
        (json!({"reasoning": "high"}), "reasoning"),
        (json!({"reasoning": {"effort": "x"}}), "reasoning.effort"),
        (json!({"reasoning": {"exclude": "x"}}), "reasoning.exclude"),
        (json!({"include_reasoning": "no"}), "include_reasoning"),
        (json!({"chat_template_kwargs": []}), "chat_template_kwargs"),
        (json!({"chat_template_kwargs": {"current_date": 5}}), "chat_template_kwargs.current_date"),
        (json!({"tools": {}}), "tools"),
        (json!({"tools": ["f"]}), "tools[0]"),
        (json!({"tools": vec![json!({}); 65]}), "tools"),
        (json!({"tools": [{"type": "web_search"}]}), "tools[0].type"),
        (json!({"tools": [{"type": "function"}]}), "tools[0].function"),
        (tool(json!({})), "tools[0].function.name"),
        (tool(json!({"name": "a b"})), "tools[0].function.name"),
        (tool(json!({"name": "x".repeat(65)})), "tools[0].function.name"),
        (tool(json!({"name": "f", "description": 1})), "tools[0].function.description"),
        (tool(json!({"name": "f", "parameters": "x"})), "tools[0].function.parameters"),
        (tool(json!({"name": "f", "strict": 1})), "tools[0].function.strict"),
        (
            tool(json!({"name": "f", "strict": true, "parameters": {"type": "nonsense"}})),
            "tools[0].function.parameters",
        ),
        (json!({"tools": [f[0], f[0]]}), "tools[1].function.name"),
        (json!({"tool_choice": "required"}), "tool_choice"),
        (json!({"tools": f, "tool_choice": "always"}), "tool_choice"),
        (json!({"tools": f, "tool_choice": {"type": "function"}}), "tool_choice.function"),
        (
            json!({"tools": f, "tool_choice": {"type": "function", "function": {"name": "g"}}}),
            "tool_choice.function.name",
        ),
        (json!({"tools": f, "parallel_tool_calls": 1}), "parallel_tool_calls"),
        (json!({"response_format": "json"}), "response_format"),
        (json!({"response_format": {"type": "xml"}}), "response_format.type"),
        (json!({"response_format": {"type": "json_schema"}}), "response_format.json_schema"),
        (
            json!({"response_format": {"type": "json_schema", "json_schema": {}}}),
            "response_format.json_schema.schema",
        ),
        (schema(json!("x")), "response_format.json_schema.schema"),
        (schema(json!({"type": "nonsense"})), "response_format.json_schema.schema"),
        (schema(json!({"$ref": "#/nowhere"})), "response_format.json_schema.schema"),
        (json!({"structured_outputs": {}}), "structured_outputs"),
        (json!({"structured_outputs": {"structural_tag": "x"}}), "structured_outputs.structural_tag"),
        (json!({"structured_outputs": {"choice": []}}), "structured_outputs.choice"),
        (json!({"structured_outputs": {"regex": "("}}), "structured_outputs.regex"),
        (json!({"structured_outputs": {"regex": "a", "choice": ["b"]}}), "structured_outputs.choice"),
        (json!({"guided_regex": "a", "guided_choice": ["b"]}), "guided_choice"),
        (json!({"guided_json": "{"}), "guided_json"),
        (json!({"guided_grammar": "nonsense"}), "guided_grammar"),
        (json!({"modalities": ["text", "audio"]}), "modalities[1]"),
        (json!({"functions": [{"name": "f"}]}), "functions"),
        (json!({"function_call": "auto"}), "function_call"),
        (json!({"best_of": 2}), "best_of"),
        (json!({"echo": true}), "echo"),
        (json!({"bad_words": ["x"]}), "bad_words"),
        (json!({"prompt_logprobs": 1}), "prompt_logprobs"),
        (json!({"add_generation_prompt": false}), "add_generation_prompt"),
        (json!({"continue_final_message": true}), "continue_final_message"),
    ]
}

fn text_cases() -> Vec<(Value, &'static str)> {
    vec![
        (json!({}), "prompt"),
        (json!({"prompt": null}), "prompt"),
        (json!({"prompt": 5}), "prompt"),
        (json!({"prompt": ""}), "prompt"),
        (json!({"prompt": []}), "prompt"),
        (json!({"prompt": [""]}), "prompt[0]"),
        (json!({"prompt": [[]]}), "prompt[0]"),
        (json!({"prompt": [[1], [-1]]}), "prompt[1][0]"),
        (json!({"prompt": [201_088]}), "prompt[0]"),
        (json!({"prompt": [1.5]}), "prompt[0]"),
        (json!({"prompt": ["a", 5]}), "prompt[1]"),
        (json!({"prompt": vec!["x"; 17]}), "prompt"),
        (json!({"prompt": ["a", "b"], "n": 9}), "prompt"),
        (json!({"prompt": "a", "suffix": "b"}), "suffix"),
        (json!({"prompt": "a", "best_of": 2}), "best_of"),
        (json!({"prompt": "a", "echo": 1}), "echo"),
        (json!({"prompt": "a", "echo": true, "logprobs": 1}), "logprobs"),
        (json!({"prompt": "a", "logprobs": true}), "logprobs"),
        (json!({"prompt": "a", "logprobs": 21}), "logprobs"),
        (json!({"prompt": "a", "max_tokens": 0}), "max_tokens"),
        (json!({"prompt": "a", "guided_json": {}, "guided_regex": "x"}), "guided_regex"),
        (json!({"prompt": "a", "response_format": {"type": "json_object"}}), "response_format"),
        (json!({"prompt": "a", "skip_special_tokens": 1}), "skip_special_tokens"),
    ]
}

/// Bodies that are wrong as a whole.
fn raw_cases() -> Vec<Vec<u8>> {
    let deep = format!("{{\"messages\":{}{}}}", "[".repeat(100_000), "]".repeat(100_000));
    let wide = format!("{{\"temperature\": {}}}", "9".repeat(100_000));
    vec![
        b"".to_vec(),
        b"{".to_vec(),
        b"null".to_vec(),
        b"[]".to_vec(),
        b"\"messages\"".to_vec(),
        b"{\"messages\": [}".to_vec(),
        b"{\"messages\": []} trailing".to_vec(),
        b"{\"messages\": [{\"role\": \"user\", \"content\": \"\xff\xfe\"}]}".to_vec(),
        b"{\"model\": \"\\ud800\"}".to_vec(),
        b"{\"temperature\": NaN}".to_vec(),
        b"{\"temperature\": 1e999}".to_vec(),
        b"\x1f\x8b\x08 compressed".to_vec(),
        deep.into_bytes(),
        wide.into_bytes(),
    ]
}

#[tokio::test]
async fn what_is_wrong_is_named_and_the_server_goes_on() {
    let server = TestServer::new(&["<|channel|>final<|message|>ok<|return|>"]);
    let mut num_cases = 0;
    for (more, param) in chat_cases() {
        let (status, body) = read(server.post_chat(ask(more.clone()).to_string()).await).await;
        assert_eq!(status, 400, "{more}: {body}");
        let error = &body["error"];
        assert_eq!(error["param"], param, "{more}: {body}");
        assert_eq!(error["type"], "invalid_request_error");
        let message = error["message"].as_str().unwrap();
        assert!(message.starts_with(param) && message.len() < 400, "{message}");
        num_cases += 1;
    }
    for (body, param) in text_cases() {
        let response = server.openai.completions(TestServer::request(), body.to_string().into()).await;
        let (status, error) = read(response).await;
        assert_eq!((status.as_u16(), &error["error"]["param"]), (400, &json!(param)), "{body}: {error}");
        num_cases += 1;
    }
    for body in raw_cases() {
        let start = String::from_utf8_lossy(&body[..body.len().min(60)]).into_owned();
        let (status, error) = read(server.post_chat(body).await).await;
        assert_eq!(status, 400, "{start}: {error}");
        num_cases += 1;
    }
    assert!(num_cases >= 80, "{num_cases}");
    let body = server.chat(ask(json!({}))).await;
    assert_eq!(body["choices"][0]["message"]["content"], "ok");
}

#[tokio::test]
async fn a_prompt_beyond_the_context_is_the_clients_to_shorten() {
    let server = TestServer::new(&["<|channel|>final<|message|>ok<|return|>"]);
    let long = json!([{"role": "user", "content": "word ".repeat(50_000)}]);
    let (status, body) = read(server.post_chat(ask(json!({"messages": long})).to_string()).await).await;
    assert_eq!((status.as_u16(), &body["error"]["code"]), (400, &json!("context_length_exceeded")));
}
