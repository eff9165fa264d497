"""The JupyterLab explorer."""
