"""Tasks to train and evaluate on: datasets in the shapes the trainers read, and the models and tokenizers to match."""
