//! Messages to prompt, output text to content, thinking and tool calls.

/// Where a model's chat template comes from. Order of preference: a Go template of the request, Jinja, the Go template
/// of the store, a built-in one by architecture, else plain text.
#[derive(Clone, Debug, Default)]
pub struct ChatSource {
    /// The model's own Jinja template.
    pub jinja: Option<String>,
    /// The store's Go template.
    pub go: Option<String>,
    /// `general.architecture` or `model_type`, for the built-in ones.
    pub architecture: String,
}
