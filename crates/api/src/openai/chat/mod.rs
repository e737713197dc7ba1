//! Chat completions: a JSON body to a [`Generation`] and how its answer is to be
//! written. Reading is pure; the writer knows nothing of the request but that.

mod conversation;
mod format;
mod tools;
mod writer;

use chorale_harmony::{AnalysisHistory, RenderOptions};
use chorale_harmony::{Constraint, ConstraintSpec, ReasoningEffort, SpecError, SystemContent, ToolChoice};

pub(super) use writer::Writer;

use super::fields::{Field, parse_object};
use super::{Limits, StreamOptions, sampling};
use crate::error::ApiError;
use crate::generation::{Generation, Input, Output};
use format::Format;
use tools::Tools;

/// A chat request, read.
#[derive(Clone, Debug)]
pub struct ChatRequest {
    /// What to do.
    pub generation: Generation,
    /// How to answer.
    pub reply: ChatReply,
}

/// How a chat answer is written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ChatReply {
    /// The name that was asked for.
    pub model: String,
    /// The client's own id for the request.
    pub request_id: Option<String>,
    /// Set if chunks are wanted.
    pub stream: Option<StreamOptions>,
    /// Whether the client sees the thinking.
    pub has_reasoning: bool,
    /// Whether the client sees log-probabilities.
    pub has_logprobs: bool,
}

/// Fields of chat completions that would change the answer and are not offered.
const REFUSED: [(&str, &str); 10] = [
    ("audio", "gpt-oss writes text only"),
    ("best_of", "use n"),
    ("chat_template", "conversations are always written in harmony"),
    ("continue_final_message", "use /v1/completions to continue a text"),
    ("documents", "put them into a message"),
    ("echo", "use /v1/completions"),
    ("function_call", "use tool_choice"),
    ("functions", "use tools"),
    ("suffix", "gpt-oss does not fill in the middle"),
    ("web_search_options", "define a function under tools"),
];

/// Names of reasoning efforts. The model knows three; clients' other ones mean
/// the nearest.
const EFFORTS: [(&str, ReasoningEffort); 7] = [
    ("none", ReasoningEffort::Low),
    ("minimal", ReasoningEffort::Low),
    ("low", ReasoningEffort::Low),
    ("medium", ReasoningEffort::Medium),
    ("high", ReasoningEffort::High),
    ("xhigh", ReasoningEffort::High),
    ("max", ReasoningEffort::High),
];

/// Reads the body of `POST /v1/chat/completions`.
///
/// # Errors
///
/// The field that is wrong, and what would be right.
pub fn parse_chat(body: &[u8], limits: &Limits) -> Result<ChatRequest, ApiError> {
    let value = parse_object(body)?;
    let root = Field::root(&value);
    root.refuse(&REFUSED)?;
    check_modalities(&root)?;
    let reply = reply(&root, limits)?;
    let tools = Tools::read(&root, limits)?;
    let format = Format::read(&root)?;
    let system = system(&root, limits)?;
    let conversation = conversation::read(&root, system, &tools, &format)?;

    let output = Output::Harmony { several_calls: tools.several_calls, past_calls: tools.goes_past_calls() };
    // What `conversation` drops of old thinking is all that is to be dropped.
    let options = RenderOptions { analysis: AnalysisHistory::Keep, ..RenderOptions::default() };
    let input = Input::Conversation { conversation, options };
    let mut generation = Generation::new(input, output, chorale_plan::SamplingParams::greedy());
    sampling::read(&root, limits, &mut generation)?;
    generation.max_tokens = sampling::max_tokens(&root, &["max_completion_tokens", "max_tokens"])?;
    sampling::check_min_tokens(&root, &generation)?;
    generation.sampling.num_logprobs = num_logprobs(&root)?;
    generation.constraint = constraint(tools, format)?;
    Ok(ChatRequest { generation, reply })
}

fn reply(root: &Field<'_>, limits: &Limits) -> Result<ChatReply, ApiError> {
    let is_excluded = match root.get("reasoning") {
        Some(reasoning) => {
            reasoning.object()?;
            sampling::flag(&reasoning, "exclude", false)?
        }
        None => false,
    };
    Ok(ChatReply {
        model: sampling::model(root, limits)?,
        request_id: sampling::request_id(root)?,
        stream: sampling::stream(root)?,
        has_reasoning: sampling::flag(root, "include_reasoning", true)? && !is_excluded,
        has_logprobs: sampling::flag(root, "logprobs", false)?,
    })
}

fn check_modalities(root: &Field<'_>) -> Result<(), ApiError> {
    if let Some(user) = root.get("user") {
        user.text()?;
    }
    if root.get("add_generation_prompt").map(|field| field.boolean()).transpose()? == Some(false) {
        let field = root.need("add_generation_prompt")?;
        return Err(field.error("must be true: the assistant speaks next"));
    }
    let Some(modalities) = root.get("modalities") else { return Ok(()) };
    for modality in modalities.items()? {
        modality.one_of(&[("text", ())])?;
    }
    Ok(())
}

fn num_logprobs(root: &Field<'_>) -> Result<Option<u32>, ApiError> {
    let is_wanted = sampling::flag(root, "logprobs", false)?;
    let Some(field) = root.get("top_logprobs") else { return Ok(is_wanted.then_some(0)) };
    let num_top = field.unsigned(0..=sampling::MAX_LOGPROBS)?;
    if !is_wanted && num_top > 0 {
        return Err(field.error("is only for logprobs: true"));
    }
    Ok(is_wanted.then_some(num_top))
}

/// How the model is set up. `chat_template_kwargs` pins what it names, and null
/// there leaves the line out.
fn system(root: &Field<'_>, limits: &Limits) -> Result<SystemContent, ApiError> {
    let mut system = SystemContent { current_date: limits.system_date.text(), ..SystemContent::default() };
    if let Some(pins) = root.get("chat_template_kwargs") {
        let members = pins.object()?;
        for (key, line) in [
            ("model_identity", &mut system.model_identity),
            ("knowledge_cutoff", &mut system.knowledge_cutoff),
            ("current_date", &mut system.current_date),
        ] {
            if members.contains_key(key) {
                *line = pins.get(key).map(|field| field.text().map(str::to_owned)).transpose()?;
            }
        }
        if members.contains_key("reasoning_effort") {
            system.reasoning_effort = effort(&pins, "reasoning_effort")?;
        }
    }
    if let Some(reasoning) = root.get("reasoning") {
        system.reasoning_effort = effort(&reasoning, "effort")?.or(system.reasoning_effort);
    }
    system.reasoning_effort = effort(root, "reasoning_effort")?.or(system.reasoning_effort);
    Ok(system)
}

fn effort(object: &Field<'_>, key: &str) -> Result<Option<ReasoningEffort>, ApiError> {
    object.get(key).map(|field| field.one_of(&EFFORTS)).transpose()
}

fn constraint(tools: Tools, format: Format) -> Result<Option<Constraint>, ApiError> {
    let Format { field, constraint: response, .. } = format;
    let spec = ConstraintSpec {
        response,
        parallel_tool_calls: tools.goes_past_calls(),
        tools: tools.constraints,
        tool_choice: tools.choice,
    };
    Constraint::new(&spec).map_err(|error| spec_error(field, &error))
}

/// Harmony knows one place for what an answer must look like, clients several.
fn spec_error(format: &'static str, error: &SpecError) -> ApiError {
    let (field, message) = (error.field(), error.to_string());
    let message = message.strip_prefix(field).map_or(message.as_str(), str::trim_start);
    ApiError::invalid(if field.starts_with("tool") { field } else { format }, message)
}

/// Whether calls are possible at all.
fn allows_calls(choice: &ToolChoice) -> bool {
    *choice != ToolChoice::None
}
