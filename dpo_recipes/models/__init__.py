"""Device, tokenizer, weights, adapters, the reference, sampled replies. The only folder on peft and bitsandbytes."""
