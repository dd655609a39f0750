"""The engine inside the stand-in replica: real in-flight batching around an exchangeable forward pass.

From the inside out: `kv` hands out cache blocks, `scheduler` decides what each step computes, `forward` computes
it or says how long that would take, `pipeline` puts the steps of all lanes on one time line, and `engine` runs
that time line on a real clock. `simulation` runs it on a virtual clock instead, so what is promised and what is
served come from the same code. `service` turns tokens into text and faults; only the Triton model sees Triton.

`torch_forward` and `torch_model` are imported only when the configuration asks for them; nothing else needs
PyTorch.
"""
