"""The training benchmark: 160 sub-models from one training, against the strongest alternatives."""
