"""Classification with frozen or fine-tuned backbones: k-NN, linear heads, fine-tuning."""
