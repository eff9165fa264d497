# JupyterLab with the workbench, for a machine without Python, or one that should not change.
#   docker build -t lvlm-workbench .        with --build-arg PIP_EXTRA_INDEX_URL=… for PyTorch's CPU wheels
#   docker run --rm -p 8888:8888 -v "$PWD/runs:/home/lab/runs" lvlm-workbench        then open the address it prints
FROM python:3.11-slim
ARG PIP_EXTRA_INDEX_URL=""
COPY pyproject.toml README.md LICENSE constraints.txt /opt/workbench/
COPY workbench /opt/workbench/workbench
COPY notebooks /opt/workbench/notebooks
RUN pip install --no-cache-dir --constraint /opt/workbench/constraints.txt "/opt/workbench[lab]" && rm -r /opt/workbench
RUN useradd --create-home lab
USER lab
WORKDIR /home/lab
EXPOSE 8888
CMD ["workbench", "lab", "--folder", "notebooks", "--", "--ip=0.0.0.0", "--no-browser"]
