"""Mutants of the public calls' two doors, and of the rules between the folders."""

from .mutant import in_file

__all__ = ["MUTANTS"]

MUTANTS = [
    *in_file(
        "doors",
        "rope_kernels/api/apply.py",
        ("branch", "text is None or not direct.rotate_(", "text is not None and not direct.rotate_(",
         "what the fast door does not take is dropped"),
        ("refusal", " and not cfg.depends_on_length:", ":", "with a gradient, frequencies ignore the length"),
        ("refusal", "seq_len is offset is cu_seqlens is None and", "seq_len is cu_seqlens is None and",
         "with a gradient, an offset is ignored"),
        ("refusal", "if is_compiling() or not (", "if not (", "a traced call takes the fast door"),
        ("refusal", "type(out) is tuple and len(out) == 2", "len(out) == 2", "out= may be a list"),
    ),
    *in_file(
        "doors",
        "rope_kernels/ops/autograd.py",
        ("refusal", "    except _RefusedError:\n        return None\n", "    finally:\n        pass\n",
         "the fast door words an error"),
        ("refusal", "    except _RefusedError:\n", "    except Exception:\n",
         "the fast door takes what a hook on saved tensors raises for a refusal"),
    ),
    *in_file(
        "layout",
        "rope_kernels/core/rotation.py",
        ("rule", "from ..errors import RopeConfigError\n",
         "from ..config import RopeConfig\nfrom ..errors import RopeConfigError\n", "core imports config"),
    ),
    *in_file(
        "layout",
        "rope_kernels/ops/operators.py",
        ("rule", "    operation = parse_text(args.text)\n",
         "    from ..api import checks\n\n    operation = parse_text(args.text)\n", "ops imports api in a function"),
    ),
    *in_file(
        "layout",
        "csrc/cpu/scratch.h",
        ("rule", '#include "core/spec.h"\n', "#include <torch/csrc/stable/tensor.h>\n\n" + '#include "core/spec.h"\n',
         "csrc/cpu includes a header of torch"),
    ),
    *in_file(
        "layout",
        "csrc/cpu/kernel.h",
        ("rule", '#include "cpu/prefetch.h"\n', "", "a header reaches another through a third one"),
    ),
]  # fmt: skip
