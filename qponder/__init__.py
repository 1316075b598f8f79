"""Reasoning-based visual quality assessment: an open implementation of Q-Ponder

Modules:

- `qponder.base`: nano-base: a small model that describes what it sees, before it has met anybody's opinion.
- `qponder.data`: Rated photographs: what a score means, photos that can be trusted, the sample that ships, and a CSV of your own
- `qponder.doctor`: Is this computer fit for it? What is installed, what is missing, and what is known not to go together
- `qponder.estimate`: What a run will take, before it begins: memory, tokens, hours, money
- `qponder.evaluate`: How good the scores are, how sure we can be of that, and whether the reasoning means anything
- `qponder.fast`: nano in plain PyTorch: one photo rated in the time it takes to import a framework
- `qponder.grpo`: Look before you train, then let the student learn from its own answers: Q-Ponder-CI becomes Q-Ponder.
- `qponder.model`: Students: load one, build nano, fix how photos enter, let it speak, read the score it expects, save it.
- `qponder.parity`: Two engines, one student: does vLLM answer as transformers does?
- `qponder.photo`: A photo, opened or refused
- `qponder.processes`: One run on several processes: who am I, who writes, and how is an update shared
- `qponder.rate`: The thing people call: one photo, two photos or a folder, rated with reasons
- `qponder.reward`: What a student is paid for: a readable answer, a score close to the human one, and reasoning that agrees with both the score and the photo
- `qponder.see`: Before it explains anything, a small student's tower learns what people mind
- `qponder.served`: A large model behind an address writes the traces
- `qponder.sft`: The cold start: a student learns its teacher's traces word by word and becomes Q-Ponder-CI.
- `qponder.shards`: Millions of photos: shards in, shards out, many workers, and nothing done twice"""

__version__ = "0.6.0"
