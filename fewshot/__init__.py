"""What a few-shot task is on disk: lists, prompts, shots, the files between the stages, figures. No Jittor here."""
