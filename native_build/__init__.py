"""What setup.py needs to build the native kernels: tools, GPU architectures, a ninja file, and errors with a remedy.

Part of the build alone: it is imported by setup.py and its tests, and no part of a wheel.
"""
