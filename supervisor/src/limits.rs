//! The numbers that the supervisor's rooms share or promise, with unit and reason. Names end in their unit. A bound that one
//! file alone needs stands there. What both sides of the wire must keep to stands in [`ollmlx_proto::limits`]; those of the workers are theirs.
//!
//! A limit that users may change is the default of an entry in `config/table.rs`; it still stands here, once.

pub use ollmlx_proto::limits::{
    BATCH_TOKENS_MAX, CONTEXT_TOKENS_MIN, FRAME_BYTES_MAX, HELLO_TIMEOUT_MS, INSPECT_BYTES_MAX, JSON_DEPTH_MAX,
    LOAD_STALL_MS, MEMORY_LIMIT_BYTES_MIN, MIB, PROGRESS_INTERVAL_MS, SILENCE_MS, SLOTS_MAX,
};

// --- the door ---
/// Open client connections; accepting pauses above it.
pub const CONNECTIONS_MAX: usize = 16_384;
/// Of these, connections of one client address that is not this machine's own; for IPv6 of one /64, which is what one
/// client is commonly given. A sixteenth of all, and more than a proxy or a shared address has open for local models.
pub const CONNECTIONS_PER_ADDRESS_MAX: usize = 1_024;
/// Between two lines of the log about connections that were closed for that.
pub const CROWD_LOG_MS: u64 = 10_000;
/// Keys of the keys file: each request is compared with all of them.
pub const KEYS_MAX: usize = 1_024;
/// Bytes of the keys file: as many of the longest lines that make sense.
pub const KEYS_FILE_BYTES_MAX: u64 = 1 << 20;
/// A key's name, which stands in every line of the log that is about its requests.
pub const KEY_NAME_CHARS_MAX: usize = 64;
/// Bytes of a JSON request body (images are base64 in it).
pub const BODY_BYTES_MAX: usize = 64 * MIB;
/// Bytes of all bodies held at once, so that a crowd of large ones can't exhaust the supervisor.
pub const BODY_BYTES_TOTAL_MAX: usize = 256 * MIB;
/// Bytes that may be built of a body, beyond twice its own: what a small request with many parts takes.
pub const BODY_BUILT_SPARE_BYTES: usize = 2 * MIB;
/// A larger body is read aside: it takes milliseconds, and nobody else is to wait for them.
pub const BODY_INLINE_BYTES_MAX: usize = 256 * 1024;
/// Values of one request in its schemas, tools and arguments together: its worker makes a tree of them, at some hundred
/// bytes each. Each takes two tokens at least, so no window holds as many.
pub const FREE_JSON_VALUES_MAX: usize = 256 * 1024;
/// Bytes of a model's name in a body, which may be a path: the longest one of Linux.
pub const MODEL_NAME_BYTES_MAX: usize = 4096;
/// Bytes of the name of an option; ours have at most 20.
pub const OPTION_NAME_BYTES_MAX: usize = 128;
/// Bytes of the role of a message; templates know words of ten.
pub const ROLE_BYTES_MAX: usize = 64;
/// Messages, or calls of tools, that are looked through for the one that a tool's result answers. It is among the last ones.
pub const CALLS_LOOKED_BACK_MAX: usize = 1024;
/// Bytes of a call's id with which it is looked for: many times what any dialect gives out.
pub const CALL_ID_BYTES_MAX: usize = 256;
/// Bytes of an uploaded blob, which streams to disk.
pub const BLOB_BYTES_MAX: u64 = 1 << 40;
/// A body must arrive within this.
pub const BODY_READ_TIMEOUT_MS: u64 = 60_000;
/// A blob upload must bring some bytes within this.
pub const BLOB_STALL_MS: u64 = 60_000;
/// The newest request's share of the average time that one takes is one of so many parts.
pub const SERVICE_SHARE: u64 = 8;
/// Nobody who is turned away is told to wait longer.
pub const RETRY_AFTER_S_MAX: u64 = 300;
/// Request head: line and headers must arrive within this.
pub const HEADER_READ_TIMEOUT_MS: u64 = 10_000;
/// Bytes of a request head.
pub const HEADER_BYTES_MAX: usize = 64 * 1024;
/// A client that takes no bytes for this long is cut off.
pub const CLIENT_WRITE_TIMEOUT_MS: u64 = 120_000;
/// Bytes of merged text held for a slow client before its request is cancelled.
pub const CLIENT_BACKLOG_BYTES_MAX: usize = 4 * MIB;
/// Bytes of merged text held for a slow client at which its worker pauses the request, until none are left. Most answers are
/// far shorter and free their slot however slowly they are read.
pub const CLIENT_BACKLOG_PAUSE_BYTES: usize = 256 * 1024;
/// Pauses of one request that last longer in all end it: it holds a slot.
pub const CLIENT_PAUSE_MS_MAX: u64 = 10 * 60_000;
/// Bytes that the kernel may keep for a client that does not read, as asked for; Linux doubles it. Left alone, it takes
/// megabytes, and a slow client is seen that much later.
pub const CLIENT_SOCKET_BYTES: usize = 128 * 1024;
/// Outputs queued per request before deltas are merged.
pub const OUTPUT_QUEUE_LEN_MAX: usize = 256;
/// Stop strings of one request.
pub const STOP_STRINGS_MAX: usize = 64;
/// Bytes of one stop string.
pub const STOP_STRING_BYTES_MAX: usize = 1024;
/// Inputs of one embedding request.
pub const EMBED_INPUTS_MAX: usize = 2048;
/// Alternatives per token in log probabilities.
pub const TOP_LOGPROBS_MAX: u8 = 20;

// --- the waiting room ---
/// Requests waiting over all models (`OLLAMA_MAX_QUEUE`).
pub const QUEUE_LEN_MAX: usize = 512;
/// Clients of one model whose last turns are remembered, so that all have them in turn; half of them, the latest, when
/// there are more.
pub const CLIENTS_REMEMBERED_MAX: usize = 1_024;
/// Bytes of all requests in the house: each is kept until its end, so that it can go on after its worker's death.
pub const REQUEST_BYTES_KEPT_MAX: usize = 512 * MIB;
/// Of them nobody has more than so many times what is left for others: there is always a part for whoever comes next.
pub const REQUEST_BYTES_SHARE: usize = 3;
/// Longest wait for a grant.
pub const QUEUE_WAIT_MS_MAX: u64 = 30 * 60_000;
/// Requests in the house at once, waiting, running or not yet let go by their clients.
pub const TICKETS_MAX: usize = 8192;
/// Events waiting for the driver.
pub const DRIVER_QUEUE_LEN_MAX: usize = 4096;

/// A model that waits for room this long makes busy workers give way. Shorter, and two models under load would be
/// reloaded in turns for every request.
pub const YIELD_AFTER_MS: u64 = 5_000;
/// Processes at once where nothing is configured (`OLLAMA_MAX_LOADED_MODELS`); Ollama's own default without a GPU.
pub const WORKERS_MAX: usize = 3;
/// How long a model stays after its last request where nothing is said (`OLLAMA_KEEP_ALIVE`).
pub const KEEP_ALIVE_MS: u64 = 5 * 60_000;
/// Models that clients keep for ever hold one part in so many of the places and of the memory, and one of them what it takes.
/// Less, and a pin would mean nothing; more, and a few clients would leave one place to all others.
pub const PINNED_SHARE: usize = 2;
/// Models whose past is remembered.
pub const MODELS_REMEMBERED_MAX: usize = 1024;

// --- the memory ladder ---
/// What is measured of all workers, in permille of the memory limit, at which each step is entered and below which it is
/// left: hold, trim, evict, drain, kill. Up to the limit nobody who works is touched; a tenth above it is where a worker
/// that does not go by itself is killed.
pub const MEMORY_MARKS_PERMILLE: [[u64; 2]; 5] = [[900, 850], [950, 900], [1000, 950], [1020, 970], [1100, 1000]];
/// Time lost by all processes of the machine together to waiting for memory, in permille over ten seconds, at which each
/// step is entered and below which it is left: hold, trim, evict, drain. A tenth is what desktop systems call low memory.
pub const PRESSURE_MARKS_PERMILLE: [[u64; 2]; 4] = [[50, 25], [100, 50], [200, 100], [400, 200]];
/// Between two looks at the memory of workers while one of them loads or works.
pub const MEMORY_SAMPLE_MS: u64 = 250;
/// Between two looks while all of them idle.
pub const MEMORY_SAMPLE_IDLE_MS: u64 = 1_000;
/// A worker that would pass the mark for killing within this is killed when the limit is passed.
pub const GROWTH_HORIZON_MS: u64 = 1_000;
/// Between two requests to drop caches.
pub const TRIM_AGAIN_MS: u64 = 5_000;
/// Between two workers that go because of pressure on the machine, whose average follows slowly.
pub const PRESSURE_AGAIN_MS: u64 = 5_000;
/// Requests that run get this long when their worker must go for its memory.
pub const RELIEF_DRAIN_MS: u64 = 5_000;

/// A worker's control group gets at least this much beside its budget: buffers that no plan knows, and the kernel's own
/// book-keeping of the process.
pub const CGROUP_HEADROOM_BYTES_MIN: u64 = 512 << 20;
/// And at least this part of its budget, in percent: as far as plans may be wrong.
pub const CGROUP_HEADROOM_PERCENT: u64 = 25;
/// A worker that idles with this much more than its budget, and than it had when it was ready, has leaked it.
pub const LEAK_BYTES_MIN: u64 = 256 << 20;
/// And at least this part of it, in percent.
pub const LEAK_PERCENT: u64 = 25;

// --- the record of what was decided ---
/// Events that the driver remembers: an hour and more of a few models at work, some days of idle ones.
pub const RECORD_EVENTS_MAX: usize = 65_536;
/// And bytes of them, as lines.
pub const RECORD_BYTES_MAX: usize = 16 << 20;

// --- the life of the server ---
/// Between two looks of the watchdog.
pub const WATCHDOG_TICK_MS: u64 = 1_000;
/// Looks in a row without a sign of life of the driver after which the server ends itself.
pub const WATCHDOG_MISSED_MAX: u32 = 60;
/// Signs of life for a service manager are at least this far apart, however impatient it is.
pub const SERVICE_PULSE_MS_MIN: u64 = 10;
/// After the last worker is reaped, connections get this long to write what they have.
pub const FAREWELL_MS: u64 = 2_000;
/// Longest way from the first signal to the end of a server whose parts all take their time. A service manager must wait
/// longer before it kills.
pub const LEAVE_MS_MAX: u64 = DRAIN_TIMEOUT_MS + ASK_TIMEOUT_MS + TERM_TIMEOUT_MS + KILL_TIMEOUT_MS + FAREWELL_MS;

// --- the life of a worker ---
/// A worker whose link closed gets this long to end by itself, so that its own exit status can be told.
pub const LINK_LINGER_MS: u64 = 500;
/// A frame that a worker has begun must end within this.
pub const FRAME_TIMEOUT_MS: u64 = 30_000;
/// A worker that lives and does not end what was cancelled is given up after so many times that: a step of a large model on a
/// slow CPU may take minutes, and a cancel is heard between two steps.
pub const CANCEL_SILENCES: u64 = 10;
/// But not later than this where a silence alone is not longer.
pub const CANCEL_MS_MAX: u64 = 600_000;
/// A load that nobody waits for any more goes on for so long: a client whose patience ends asks again soon.
pub const LOAD_FOR_NOBODY_MS: u64 = 5_000;
/// From "please leave" to SIGTERM.
pub const ASK_TIMEOUT_MS: u64 = 3_000;
/// From SIGTERM to SIGKILL.
pub const TERM_TIMEOUT_MS: u64 = 3_000;
/// From SIGKILL to a complaint; the process is waited for whatever happens.
pub const KILL_TIMEOUT_MS: u64 = 10_000;
/// A successor must say that it serves within this.
pub const UPGRADE_READY_MS: u64 = 30_000;
/// Bytes of what one that does not serve says in its place.
pub const LAST_WORDS_BYTES_MAX: u64 = 1_024;
/// After the end of a process, its last frames and its last words are waited for this long.
pub const LAST_WORDS_MS: u64 = 1_000;
/// When everything has ended, clients that have yet to hear theirs get this long.
pub const FLUSH_MS: u64 = 5_000;
/// After the system refused a worker's connection, until the next try.
pub const ACCEPT_RETRY_MS: u64 = 50;
/// A private server of `ollmlx chaos` must answer within this.
pub const CHAOS_START_MS: u64 = 10_000;
/// And be gone within this.
pub const CHAOS_STOP_MS: u64 = 20_000;
/// And tell of a death that is expected within this, the model's load included.
pub const CHAOS_DEATH_MS: u64 = 120_000;
/// It watches the companion of hostile requests alone for this long, to know its calm.
pub const CHAOS_CALM_MS: u64 = 3_000;
/// A hostile request must be answered or refused within this: a large model on a slow CPU fills a window first.
pub const CHAOS_ANSWER_MS: u64 = 120_000;
/// A companion's longest gap may be so many times its calm one.
pub const CHAOS_GAP_TIMES: u64 = 3;
/// And always this long: a text that halts for so long still reads as one that flows, and few cores are wanted by others as well.
pub const CHAOS_GAP_MS_MIN: u64 = 150;
/// Between two looks of `ollmlx chaos`.
pub const CHAOS_POLL_MS: u64 = 10;
/// Between two looks of `ollmlx upgrade` at which server answers.
pub const UPGRADE_POLL_MS: u64 = 100;
/// After a successor has taken over, running requests of the old server get this long.
pub const UPGRADE_DRAIN_MS: u64 = 10 * 60_000;
/// After a successor has taken over, connections that are open may still bring a request for this long.
pub const UPGRADE_LINGER_MS: u64 = 1_000;
/// Outputs for requests that nobody made, or that have ended, that one process may send. A cancel and an end may cross,
/// but that is no stray; this many are a defect.
pub const STRAY_OUTPUTS_MAX: u64 = 16;
/// Requests in a row that fail in the engine, with no token between, after which its process is replaced: a device in an
/// error state fails everything and stays up.
pub const ENGINE_FAILURES_MAX: u32 = 3;
/// Running requests get this long when the server leaves.
pub const DRAIN_TIMEOUT_MS: u64 = 30_000;
/// First delay after a failure; doubles.
pub const BACKOFF_MS_MIN: u64 = 250;
/// Longest delay after a failure.
pub const BACKOFF_MS_MAX: u64 = 30_000;
/// Deaths within the window that lead to quarantine.
pub const DEATHS_MAX: usize = 5;
/// The window.
pub const DEATHS_WINDOW_S: u64 = 600;
/// How long a quarantined model rests.
pub const QUARANTINE_S: u64 = 60;
/// Longest rest of a model that takes more than the whole memory limit each time that it is loaded; it begins with that of a
/// quarantine and doubles. Each attempt presses others out, but what it takes may have been the fault of a moment.
pub const TOO_LARGE_REST_S_MAX: u64 = 3_600;
/// Workers of different models that die of the same class of cause within this died of one cause. Whatever takes a device
/// away is noticed by all that use it within a few passes.
pub const INCIDENT_WINDOW_MS: u64 = 1_000;
/// A model that died with others and loads holds them back for this long at most: most loads are shorter, and one that
/// isn't must not be what everybody waits for.
pub const INCIDENT_STAGGER_MS: u64 = 5_000;
/// After this they are started without regard to each other: what died then is no crowd any more.
pub const INCIDENT_OVER_MS: u64 = 60_000;
/// Deaths that a request may be present at before it is the suspect.
pub const POISON_DEATHS_MAX: u32 = 2;
/// Failed loads that a waiting request sits through, after as many of which within the window the model rests, and
/// inspectors that a file may kill before it is refused unseen.
pub const LOADS_FAILED_MAX: u32 = 3;
/// Time that a request may lose to kills from outside (SIGKILL, SIGTERM and the like) without a token between them: whoever
/// kills for this long means it, or it is a system that kills for want of memory and doesn't say so.
pub const LOST_TO_KILLS_MS_MAX: u64 = 10 * 60_000;
/// How long a model rests whose own worker says that trying again is pointless.
pub const PERMANENT_REST_MS: u64 = 1_000;
/// For how long a request that was ended for that is refused when it comes again.
pub const POISON_TTL_MS: u64 = 10 * 60_000;
/// Such requests that are remembered.
pub const POISONS_MAX: usize = 64;
/// Tokens beyond the point of a death after which a request that was present at it is above suspicion again: what
/// kills a worker by what it is kills it again at the same place.
pub const PROBATION_TOKENS: usize = 16;
/// Deaths of one model that are kept for `ollmlx why`.
pub const DEATH_RECORDS_MAX: usize = 16;
/// Bytes of the log in each.
pub const DEATH_LOG_BYTES_MAX: usize = 4096;
/// Model names that metrics tell apart.
pub const MODEL_LABELS_MAX: usize = 64;
/// Printed lines of one model that are kept for `ollmlx logs`.
pub const LOG_LINES_MAX: usize = 256;
/// Models whose printed lines are kept.
pub const LOG_MODELS_MAX: usize = 32;
/// Bytes of a worker's standard error that are kept.
pub const LOG_TAIL_BYTES_MAX: usize = 64 * 1024;
/// An inspection must end within this.
pub const INSPECT_TIMEOUT_MS: u64 = 30_000;
/// Memory of its own that an inspector may have: many times what the largest headers take.
pub const INSPECT_DATA_BYTES_MAX: u64 = 2 << 30;
/// A worker without a control group may set aside this much above the mark at which it is killed. The system counts what is set
/// aside and not what is touched, and threads' stacks are among it; so this catches only what grows faster than it is measured.
pub const WORKER_DATA_BYTES_SPARE: u64 = 4 << 30;
/// Libraries that a worker is granted one by one.
pub const LIBRARIES_MAX: usize = 256;
/// Entries of a model's folder that are looked at for links: a model may have a file for each of its tensors.
pub const MODEL_LINKS_MAX: usize = 16 * 1024;

// --- the store ---
/// Bytes of the host part of a model name.
pub const NAME_HOST_BYTES_MAX: usize = 350;
/// Bytes of each other part of a model name.
pub const NAME_PART_BYTES_MAX: usize = 80;
/// Bytes of a manifest: some thousands of tensor layers.
pub const MANIFEST_BYTES_MAX: u64 = MIB as u64;
/// Layers of a manifest; a large tensor-wise model has some thousands.
pub const MANIFEST_LAYERS_MAX: usize = 8192;
/// Bytes of a text layer (template, system, licence, parameters, messages) or a config.
pub const TEXT_LAYER_BYTES_MAX: u64 = MIB as u64;
/// Manifests that one walk over a store looks at.
pub const STORE_MANIFESTS_MAX: usize = 65_536;
/// A blob that no manifest names is garbage only when it is older than this: an upload may precede its manifest.
pub const BLOB_ORPHAN_AGE_S: u64 = 3600;
/// Bytes gathered before an upload goes to disk.
pub const BLOB_BUFFER_BYTES: usize = MIB;
/// Bytes of one part of a name on the Hugging Face hub.
pub const HUB_PART_BYTES_MAX: usize = 96;
/// Bytes of a reference in the Hugging Face cache: a commit's hash and a line feed.
pub const HUB_REF_BYTES_MAX: u64 = 256;
/// Entries of one folder of the Hugging Face cache that are looked at.
pub const HUB_ENTRIES_MAX: usize = 8192;
/// Files and shards that one model may be made of.
pub const MODEL_FILES_MAX: usize = 1024;
/// Inspections that run at once.
pub const INSPECTIONS_MAX: usize = 2;
/// Longest wait for one's turn to inspect.
pub const INSPECT_WAIT_MS_MAX: u64 = 4 * INSPECT_TIMEOUT_MS;
/// A refused file is not inspected again within this, so that a crowd of requests can't make a storm of inspectors.
pub const INSPECT_REFUSAL_MS: u64 = 10_000;
/// Model cards held in memory.
pub const CARDS_MAX: usize = 256;
/// Bytes of these as JSON; a hostile file may bring large facts.
pub const CARDS_BYTES_MAX: usize = 16 * MIB;
/// Farthest that a model's priority may be from 0.
pub const PRIORITY_MAX: i32 = 1000;
/// Ways to load a model of which it is remembered what they took.
pub const LEARNED_MAX: usize = 256;
/// Bytes of the file in which that is kept; an entry takes some 250.
pub const LEARNED_BYTES_MAX: u64 = 256 * 1024;

// --- requests ---
/// The tokens of an answer that goes on after its worker's death are computed one by one for this long, as they were
/// before, so that a greedy or seeded answer stays the same to the last byte; then in batches, which round differently. After
/// each worker that died before a new token it is a quarter, so that answers whose worker is killed every few seconds get on.
pub const REPLAY_EXACT_MS: u32 = 5_000;
/// Largest window.
pub const CONTEXT_TOKENS_MAX: u32 = 1 << 22;

// --- the command line ---
/// A server on the same machine or network accepts a connection within this.
pub const CLI_CONNECT_TIMEOUT_MS: u64 = 5_000;
/// Longest silence of the server that a command bears: a request may wait in the queue and then for a load.
pub const CLI_SILENCE_MS: u64 = QUEUE_WAIT_MS_MAX + LOAD_STALL_MS;
/// Bytes of one line of a stream.
pub const CLI_LINE_BYTES_MAX: usize = 8 * MIB;

const _: () = assert!(FRAME_BYTES_MAX > BODY_BYTES_MAX + MIB, "a body must fit a frame");
const _: () = assert!(DEATHS_WINDOW_S > QUARANTINE_S, "I6: the tally must outlive a quarantine");
const _: () = assert!(BACKOFF_MS_MIN < BACKOFF_MS_MAX);
const _: () = assert!(QUARANTINE_S < TOO_LARGE_REST_S_MAX);
const _: () = assert!(INCIDENT_WINDOW_MS < INCIDENT_STAGGER_MS && INCIDENT_STAGGER_MS < INCIDENT_OVER_MS);
const _: () = assert!(CONNECTIONS_PER_ADDRESS_MAX < CONNECTIONS_MAX, "one address can't take the whole door");
const _: () = assert!(REQUEST_BYTES_KEPT_MAX >= 2 * BODY_BYTES_MAX, "a large request may wait beside another");
const _: () = assert!(BODY_BYTES_TOTAL_MAX >= BODY_BYTES_MAX);
const _: () = assert!(CLIENT_BACKLOG_PAUSE_BYTES < CLIENT_BACKLOG_BYTES_MAX, "a pause comes before the end");
const _: () = assert!(MEMORY_MARKS_PERMILLE[2][0] == 1_000, "what is reserved may be used");
const _: () = {
    let mut step = 0;
    while step < MEMORY_MARKS_PERMILLE.len() {
        let [enter, leave] = MEMORY_MARKS_PERMILLE[step];
        assert!(leave < enter, "a step is left below where it is entered");
        assert!(step == 0 || MEMORY_MARKS_PERMILLE[step - 1][0] < enter, "steps are in order");
        step += 1;
    }
};
