"""`headrace dead`: what a person does with the events that were refused for good."""
