"""Cells of two small notebooks that show everything a page must be able to show."""

from nbformat.v4 import new_code_cell, new_markdown_cell

PLAIN = [
    new_markdown_cell("# First: formulas\n\n**Claim.** One negative makes $\\sigma(s)$ too high."),
    new_code_cell(
        'dataset = "toy"  # the data set\nk = 1\nt = 0.0', metadata={"tags": ["parameters"]}
    ),
    new_markdown_cell(
        "## Text\n\nInline $\\hat{p}_i \\gg P(i)$, code `$not_math$`, and a displayed one:\n\n"
        "$$\\sigma(s_i) = \\frac{\\beta P}{\\alpha - \\alpha P + \\beta P}, \\quad "
        "\\alpha = \\frac{k}{|I| - 1}$$\n\n"
        "$$\\begin{aligned} \\beta &= 1 - t(1 - \\alpha) \\\\ t &= 1 \\end{aligned}$$\n\n"
        "```python\nprice = '$5 and $6'\n```\n\nNext: [plots](01_plots.ipynb#A-slider).\n\n"
        "| $K$ | meaning |\n|---|---|\n| 1 | *first* |\n\n> A misreading: a score is no probability."
    ),
    new_code_cell('print(f"k = {k}, t = {t}, {dataset}")'),
    new_markdown_cell("## A figure and a table"),
    new_code_cell(
        "import matplotlib.pyplot as plt\n"
        "fig, ax = plt.subplots(figsize=(7, 3.6))\nax.plot([0, 1, 2], [0, k, 4])\n"
        'ax.set_xlabel("rank")\nax.set_ylabel("probability")\nplt.show()'
    ),
    new_code_cell(
        'import pandas as pd\npd.DataFrame({"k": [1, 16], "NDCG@10": [0.131, 0.1703]}, '
        'index=["SASRec", "gSASRec"])'
    ),
]
PLOTS = [
    new_markdown_cell("# Second: plots\n\nNothing to test here."),
    new_code_cell('dataset = "toy"', metadata={"tags": ["parameters"]}),
    new_markdown_cell("## A slider"),
    new_code_cell(
        "import numpy as np\nimport plotly.graph_objects as go\n\nx = np.linspace(0, 1, 50)\n"
        'names = ["0.0", "0.5", "1.0"]\n'
        "frames = [go.Frame(name=n, data=[go.Scatter(x=x, y=x ** (1 + float(n)))]) for n in names]\n"
        'steps = [dict(label=n, method="animate", args=[[n], dict(mode="immediate", '
        "frame=dict(duration=0))]) for n in names]\n"
        'sliders = [dict(steps=steps, currentvalue=dict(prefix="t = "))]\n'
        "go.Figure(frames[0].data, dict(sliders=sliders), frames=frames)"
    ),
    new_markdown_cell("## What needs a kernel or a network, and what plotly writes itself"),
    new_code_cell("import ipywidgets\n\nipywidgets.IntSlider()"),
    new_code_cell("go.FigureWidget(frames[0].data)"),
    new_code_cell(
        "from IPython.display import HTML\n\n"
        'display(HTML(go.Figure(frames[1].data).to_html(full_html=False, include_plotlyjs="cdn")))\n'
        "display(HTML(go.Figure(frames[2].data).to_html(full_html=False)))"
    ),
    new_code_cell('import sys\n\nprint("50%|#####     | noise", file=sys.stderr)'),
]
