"""Fine-tune a transformer of Hugging Face's with its Trainer, while a monitor watches the normalizers.

    python examples/finetune_transformer.py

Needs transformers and accelerate. The network here is small and starts from nothing, so that nothing is downloaded;
for one that is trained, put AutoModelForSequenceClassification.from_pretrained(…) in its place.
"""

from __future__ import annotations

import tempfile

import torch
from torch import Tensor
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

import evenorm
from evenorm.doctor.callbacks import trainer_callback

WORDS = 64


def sentences(count: int) -> list[dict[str, Tensor]]:
    """Sequences of words; the label says whether word 7 occurs."""
    generator = torch.Generator().manual_seed(0)
    words = torch.randint(8, WORDS, (count, 16), generator=generator)
    words[::2, 3] = 7
    labels = (words == 7).any(1).long()
    return [{"input_ids": row, "labels": label} for row, label in zip(words, labels, strict=True)]


def report(monitor: evenorm.Monitor) -> None:
    """Say what the monitor saw."""
    print(f"{monitor.steps} steps watched")
    print(monitor.examination())


def main(steps: int = 60) -> float:
    """Train; return the last loss."""
    torch.manual_seed(0)
    model = BertForSequenceClassification(
        BertConfig(
            vocab_size=WORDS,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            max_position_embeddings=16,
        )
    )
    # The same layers, on evenorm's kernels.
    model, done = evenorm.accelerate(model, report=True)
    print(f"{done.count('replaced')} normalizers replaced")
    with tempfile.TemporaryDirectory() as folder:
        settings = TrainingArguments(
            output_dir=folder,
            max_steps=steps,
            per_device_train_batch_size=16,
            learning_rate=1e-3,
            logging_steps=max(steps // 3, 1),
            save_strategy="no",
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
        )
        trainer = Trainer(model, settings, train_dataset=sentences(512), callbacks=[trainer_callback(report)])
        result = trainer.train()
    return float(result.training_loss)


if __name__ == "__main__":
    main()
