"""Accelerators that need not be there: what they are, and how to compile for them.

catalog           the kinds of chips, with the facts of their data sheets
environment       what to set before jax is imported
targets           "v5e:4x8" as devices that a step can be compiled for
gpu_description   a GPU in the words of the compiler
estimate          from compiled code to memory, time, and what is sent
"""
