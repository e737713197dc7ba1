//! The chat level: a conversation becomes a generation with its constraint, and
//! its updates become typed deltas.

use super::conversation::conversation;
use super::events;
use super::sampling::{check_choices, check_limits, params};
use crate::error::ApiError;
use crate::generation::{Generation, Input, Output, Part, Update};
use crate::openai::Limits;
use chorale_harmony::{
    AnalysisHistory, Constraint, ConstraintSpec, RenderOptions, ResponseConstraint, SpecError, ToolChoice,
    ToolConstraint,
};
use chorale_wire::inference::{self as wire, Chat, ChatPart, Event};
use tokio::time::Instant;

/// The generation that a request asks for.
pub(super) fn generation(
    request: Chat,
    served: &Limits,
    deadline: Option<Instant>,
) -> Result<Generation, ApiError> {
    check_limits(&request.limits, served.vocabulary_size)?;
    check_choices(request.n, served.max_choices)?;
    if request.tools.len() > served.max_tools {
        let Limits { max_tools, .. } = served;
        return Err(ApiError::invalid("tools", format_args!("at most {max_tools} are served")));
    }
    let conversation = conversation(&request, served.system_date.text())?;
    let several_calls = request.parallel_tool_calls != Some(false);
    let past_calls = goes_past_calls(&request);
    let spec = spec(&request, past_calls);
    let constraint = Constraint::new(&spec).map_err(|error| refused(&error))?;
    let sampling = params(request.sampling, request.num_top_logprobs, served.vocabulary_size)?;
    // What `conversation` drops of old thinking is all that is to be dropped.
    let options = RenderOptions { analysis: AnalysisHistory::Keep, ..RenderOptions::default() };
    let input = Input::Conversation { conversation, options };
    let mut generation = Generation::new(input, Output::Harmony { several_calls, past_calls }, sampling);
    generation.n = request.n;
    generation.constraint = constraint;
    events::apply(&mut generation, request.limits, request.handling, deadline);
    Ok(generation)
}

/// Whether generation goes on after a call. The model ends its turn with a call
/// by nature, so the client has to ask for it.
fn goes_past_calls(request: &Chat) -> bool {
    let may_call_on = match request.tool_choice {
        Some(wire::ToolChoice::None | wire::ToolChoice::Function(_)) => false,
        Some(wire::ToolChoice::Auto | wire::ToolChoice::Required) | None => true,
    };
    request.parallel_tool_calls == Some(true) && !request.tools.is_empty() && may_call_on
}

/// What limits what the model may say.
fn spec(request: &Chat, parallel_tool_calls: bool) -> ConstraintSpec {
    let response = match &request.format {
        wire::Format::Text => ResponseConstraint::None,
        wire::Format::JsonObject => ResponseConstraint::JsonObject,
        wire::Format::JsonSchema(format) => ResponseConstraint::JsonSchema(format.schema.clone()),
    };
    let tool = |tool: &wire::Tool| ToolConstraint {
        name: tool.name.clone(),
        parameters: tool.parameters.clone(),
        strict: tool.strict,
    };
    let tool_choice = match &request.tool_choice {
        Some(wire::ToolChoice::None) => ToolChoice::None,
        Some(wire::ToolChoice::Auto) | None => ToolChoice::Auto,
        Some(wire::ToolChoice::Required) => ToolChoice::Required,
        Some(wire::ToolChoice::Function(name)) => ToolChoice::Named(name.clone()),
    };
    let tools = request.tools.iter().map(tool).collect();
    ConstraintSpec { response, tools, tool_choice, parallel_tool_calls }
}

/// A demand that cannot be enforced, under the name that its field has here;
/// harmony calls fields as HTTP does.
fn refused(error: &SpecError) -> ApiError {
    let field = match error.field() {
        "response_format" => "response_format.json_schema.schema_json".to_owned(),
        field => field.replace(".function.parameters", ".parameters_json").replace(".function.", "."),
    };
    let message = error.to_string();
    ApiError::invalid(field, message.strip_prefix(error.field()).map_or(message.as_str(), str::trim_start))
}

/// The events of an update, in the order of its parts.
pub(super) fn events(update: Update) -> Vec<Event<ChatPart>> {
    let index = update.choice;
    update.parts.into_iter().map(|part| Event::Choice { index, event: event(part) }).collect()
}

fn event(part: Part) -> ChatPart {
    match part {
        Part::Reasoning(text) => ChatPart::Reasoning(text),
        Part::Content { text, logprobs } => {
            let logprobs = logprobs.iter().filter_map(events::sampled).collect();
            ChatPart::Content { text, logprobs }
        }
        Part::CallStarted { index, id, name } => ChatPart::CallStarted { call_index: index, id, name },
        Part::CallArguments { index, text } => ChatPart::CallArguments { call_index: index, text },
        Part::Finished { finish, usage } => ChatPart::Finished(events::ended(finish, usage)),
    }
}
