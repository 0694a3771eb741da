"""A language model in 28 sizes, SmolLM2-135M-Instruct: its training on a GPU, its speed on a CPU, and their rivals."""
