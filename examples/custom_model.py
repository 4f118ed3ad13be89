"""Guarding a model that your own code has loaded, and offering it to LangChain.

Any decoder-only `transformers` model will do. Here it is the bundled agent's checkpoint, loaded the
plain way. Run `make demo` first: it makes the profile.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer

from toolguard.adapters.chat.chat_model import GuardedChatModel
from toolguard.adapters.guarded_agent import GuardedAgent
from toolguard.adapters.loading import reference_folder
from toolguard.guard.guard import Guard
from toolguard.guard.policy import Policy
from toolguard.guard.profile import Profile

PROFILE = Path("out/demo/profile")


def main(arguments: Sequence[str] | None = None) -> None:
    """Load, guard, generate; then the same model as a chat model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--profile", type=Path, default=PROFILE)
    parser.add_argument("--checkpoint", type=Path, default=reference_folder())
    options = parser.parse_args(arguments)

    model = AutoModelForCausalLM.from_pretrained(options.checkpoint, dtype="float32").eval()
    tokenizer = AutoTokenizer.from_pretrained(options.checkpoint)
    profile = Profile.load(options.profile)
    guard = Guard(profile, Policy())  # the default policy watches and blocks nothing
    # For an architecture that is not in the table of known ones, say where its blocks are.
    agent = GuardedAgent(model, tokenizer, guard, layers_path="model.layers")

    messages = [{"role": "user", "content": "What is the weather in Oslo right now?"}]
    result = agent.generate(messages, profile.meta.menu, do_sample=False)
    for judged in result.judged:
        reading = judged.decision.reading
        print(f"call       {judged.decision.tool}, P(wrong) {reading.p_wrong:.3f}")
        print(f"rivals     {', '.join(reading.ranking('logprob')[1:4])}")

    chat = GuardedChatModel(agent=agent, temperature=0).bind_tools(profile.meta.menu)
    message = chat.invoke("Remind me at noon to call the dentist")
    for call in message.tool_calls:
        record = message.response_metadata["toolguard"][call["id"]]
        print(f"LangChain  {call['name']} {call['args']}: {record['action']}")


if __name__ == "__main__":
    main()
